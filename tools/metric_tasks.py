"""The tasks of tools/metric_study.py: a real file, samples without labels for onnxprune, and a true metric of its own.

No true metric uses code of onnxprune/outputs. Labels are real (CIFAR-10, file types by their suffix) or hold by
construction (rendered text, synthesized notes, voices mixed with noise, changed copies of images). There are no
labelled images for detectors here, and no real voices: what the original finds on samples of its own stands in.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import spearmanr

from tools import cifar, imagenet

Feeds = Mapping[str, np.ndarray]
Answers = Callable[[Feeds], dict[str, np.ndarray]]  # inputs of N samples -> outputs (N, ...)
FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "LiberationSans-Regular.ttf")


@dataclass(frozen=True)
class Task:
    """samples(path) -> (to score and tune on, to measure on); truth(path) -> a function of answers, larger is better.

    answers: of a file, so many samples a run. labels: what the true metric takes for right. reads: the one of several
    outputs that the true metric reads, so that the figure of that output is what it is compared with. more: variants
    beside those of all tasks, (method, recovery, share of the MACs).
    """

    file: str
    what: str
    metric: str
    labels: str
    samples: Callable[[Path], tuple[Feeds, Feeds]]
    truth: Callable[[Path], Callable[[Answers], float]]
    batch: int = 16
    answers: Callable[[Path, int], Answers] | None = None
    reads: str = ""
    more: tuple[tuple[str, str, float], ...] = ()


def answers_of(path: Path, batch: int) -> Answers:
    """What a file answers, `batch` samples a run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        count = len(next(iter(feeds.values())))
        parts = [
            session.run(None, {name: x[k : k + batch] for name, x in feeds.items()}) for k in range(0, count, batch)
        ]
        return {name: np.concatenate(found) for name, found in zip(names, zip(*parts, strict=True), strict=True)}

    return run


def alike(original: Answers) -> Answers:
    """A null model: it answers every sample with the mean of the original's answers."""

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(y.mean(0, keepdims=True), y.shape) for name, y in original(feeds).items()}

    return run


def halves(feeds: Feeds, first: int) -> tuple[Feeds, Feeds]:
    """The first samples, and the rest."""
    return {name: x[:first] for name, x in feeds.items()}, {name: x[first:] for name, x in feeds.items()}


# Classes ----------------------------------------------------------------------------------------------------------


def cifar_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"input": cifar.load("resnet", "train", 0, 768)[0]}, 256)


def cifar_truth(path: Path) -> Callable[[Answers], float]:
    x, y = cifar.load("resnet", "test", 0, 1500)
    return lambda answers: float((answers({"input": x})["logits"].argmax(1) == y).mean())


SUFFIXES = {
    "py": "python", "pyc": "pythonbytecode", "h": "c", "c": "c", "cpp": "cpp", "json": "json", "md": "markdown",
    "html": "html", "css": "css", "js": "javascript", "png": "png", "svg": "svg", "so": "elf", "xml": "xml",
    "yaml": "yaml", "yml": "yaml", "sh": "shell", "toml": "toml", "zip": "zip", "gz": "gzip", "ttf": "ttf",
    "pl": "perl", "pm": "perl", "npy": "npy", "whl": "zip",
    "csv": "csv", "pdf": "pdf", "rst": "rst", "jpg": "jpeg", "wav": "wav",
}  # fmt: skip
EACH = 16  # files of a suffix


@cache
def typed_files() -> tuple[np.ndarray, list[str]]:
    """Tokens (N, 2048) of files of this machine's Python and system, and their types by suffix."""
    found: dict[str, list[Path]] = {}
    for folder in (Path(sys.prefix), Path(np.__file__).parents[1], Path("/usr/share"), Path("/usr/lib")):
        for path in sorted(folder.rglob("*")):
            suffix = path.suffix[1:].lower()
            if suffix in SUFFIXES and path.is_file() and path.stat().st_size > 64:
                found.setdefault(suffix, []).append(path)
    rng, rows, types = np.random.default_rng(0), [], []
    for suffix, paths in sorted(found.items()):
        for k in rng.permutation(len(paths))[:EACH]:
            with paths[k].open("rb") as file:
                head = file.read(4096).strip()
                file.seek(max(0, paths[k].stat().st_size - 4096))
                tail = file.read().strip()
            row = np.full(2048, 256, np.int32)
            row[: len(head[:1024])], row[2048 - len(tail[-1024:]) :] = list(head[:1024]), list(tail[-1024:])
            rows.append(row)
            types.append(SUFFIXES[suffix])
    order = rng.permutation(len(rows))
    return np.stack(rows)[order], [types[k] for k in order]


def typed_samples(path: Path) -> tuple[Feeds, Feeds]:
    rows = typed_files()[0]
    third = len(rows) // 3
    return halves({"bytes": rows[: 2 * third]}, third)


def typed_truth(path: Path) -> Callable[[Answers], float]:
    """Share of right types on the last third of the files.

    The number of a class is what the original answers to most files of a suffix.
    """
    rows, types = typed_files()
    third = len(rows) // 3
    said = answers_of(path, 64)({"bytes": rows[: 2 * third]})["target_label"].argmax(1)
    number = {t: int(np.bincount(said[[k for k in range(2 * third) if types[k] == t]]).argmax()) for t in set(types)}
    y = np.array([number[t] for t in types[2 * third :]])
    return lambda answers: float((answers({"bytes": rows[2 * third :]})["target_label"].argmax(1) == y).mean())


# Text in pictures -------------------------------------------------------------------------------------------------

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work number night point home water room mother area money"
).split()


@cache
def fonts() -> list[str]:
    """Those of FONTS that this machine has."""
    return [name for name in FONTS if has_font(name)]


def has_font(name: str) -> bool:
    try:
        ImageFont.truetype(name, 20)
    except OSError:
        return False
    return True


def font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(fonts()[rng.integers(len(fonts()))], size)


def line(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A line of text 48 x 192 and what it says: words or numbers."""
    word = str(rng.choice(WORDS)) + (f" {rng.integers(1000)}" if rng.random() < 0.5 else "")
    ground, ink = int(rng.integers(170, 256)), int(rng.integers(0, 90))
    image = Image.new("RGB", (192, 48), (ground,) * 3)
    ImageDraw.Draw(image).text((8, int(rng.integers(4, 12))), word, (ink,) * 3, font(rng, int(rng.integers(20, 28))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (48, 192, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), word


def lines(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    made = [line(rng) for _ in range(count)]
    x = np.stack([np.asarray(image, np.float32)[..., ::-1] for image, _ in made]).transpose(0, 3, 1, 2)
    return x / 127.5 - 1, [word for _, word in made]


def line_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"x": lines(160, 1)[0]}, 80)


def line_truth(path: Path) -> Callable[[Answers], float]:
    """1 - edits / length of the texts that were rendered."""
    x, words = lines(100, 2)
    letters = next(p.value for p in onnx.load(str(path)).metadata_props if p.key == "character").splitlines()
    letters = ["", *letters, " "]

    def rate(answers: Answers) -> float:
        found = []
        for row, word in zip(answers({"x": x})["softmax_11.tmp_0"].argmax(2), words, strict=True):
            said = "".join(letters[k] for j, k in enumerate(row) if k and (not j or row[j - 1] != k))
            found.append(max(0.0, 1 - distance(said.strip(), word) / len(word)))
        return float(np.mean(found))

    return rate


def distance(a: str, b: str) -> int:
    """Levenshtein's."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
    return int(table[-1, -1])


def turned(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = lines(count, seed)[0]
    y = np.random.default_rng(seed).integers(0, 2, count)
    return np.where(y[:, None, None, None] == 1, x[:, :, ::-1, ::-1], x).astype(np.float32), y


def turn_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"x": turned(260, 3)[0]}, 100)


def turn_truth(path: Path) -> Callable[[Answers], float]:
    x, y = turned(240, 4)
    return lambda answers: float((answers({"x": x})["save_infer_model/scale_0.tmp_1"].argmax(1) == y).mean())


def pages(count: int, seed: int, side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Photographs with words on them (N, 3, side, side) and the kernels of the words (N, side, side)."""
    rng, photos = np.random.default_rng(seed), imagenet.Images("train1000", 100 * seed, count)
    xs, masks = [], []
    for k in range(count):
        with Image.open(io.BytesIO(photos.zip.read(photos.names[k]))) as photo:
            image = photo.convert("RGB").resize((side, side))
        mask = np.zeros((side, side), bool)
        draw, top = ImageDraw.Draw(image), int(rng.integers(2, 30))
        for _ in range(int(rng.integers(1, 4))):
            size = int(rng.integers(16, 28))
            at, word, face = (int(rng.integers(2, 50)), top), str(rng.choice(WORDS)), font(rng, size)
            left, up, right, down = draw.textbbox(at, word, face)
            draw.rectangle((left - 3, up - 3, right + 3, down + 3), fill=(245,) * 3)
            draw.text(at, word, (int(rng.integers(0, 80)),) * 3, face)
            inset = round(0.84 * (right - left) * (down - up) / 2 / (right - left + down - up))  # as DBNet is taught
            mask[int(up) + inset : int(down) - inset, int(left) + inset : int(right) - inset] = True
            top += size + int(rng.integers(12, 30))
        xs.append((np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - imagenet.MEAN) / imagenet.STD)
        masks.append(mask)
    return np.stack(xs).astype(np.float32), np.stack(masks)


def page_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"x": pages(96, 1)[0]}, 48)


def page_truth(path: Path) -> Callable[[Answers], float]:
    """Intersection over union of what is above 0.3 with where words were drawn, over all places of all pages."""
    x, masks = pages(60, 5)

    def score(answers: Answers) -> float:
        found = answers({"x": x})["sigmoid_0.tmp_0"][:, 0] > 0.3
        return float((found & masks).sum() / (found | masks).sum())

    return score


# Embeddings -------------------------------------------------------------------------------------------------------

SLOTS = (
    "man woman child dog cat student farmer doctor king soldier".split(),
    "eats sees buys sells paints loves carries finds cooks watches".split(),
    "bread car house book apple horse ship picture song flower".split(),
    "city forest garden school church kitchen market station river mountain".split(),
)
SAME = (  # other words for those
    "guy lady kid puppy kitten pupil peasant physician monarch warrior".split(),
    "tastes notices purchases trades draws likes brings discovers prepares observes".split(),
    "toast automobile home novel fruit pony boat photograph tune rose".split(),
    "town woods yard academy chapel cafe shop depot stream hill".split(),
)


def sentence(slots: Sequence[int], words: Sequence[Sequence[str]] = SLOTS) -> str:
    who, does, what, where = (row[k] for row, k in zip(words, slots, strict=True))
    return f"the {who} {does} a {what} near the {where}"


def tokens(sentences: Sequence[str], path: Path) -> Feeds:
    """BERT's numbers of words that all stand in its list, vocab.txt beside the model."""
    words = {word: k for k, word in enumerate(path.with_name("vocab.txt").read_text().splitlines())}
    rows = np.array([[101, *(words[w] for w in s.split()), 102] for s in sentences], np.int64)
    return {"input_ids": rows, "attention_mask": np.ones_like(rows), "token_type_ids": np.zeros_like(rows)}


def sentence_samples(path: Path) -> tuple[Feeds, Feeds]:
    rng = np.random.default_rng(6)
    said = [sentence(rng.integers(0, 10, 4).tolist(), SLOTS if k % 2 else SAME) for k in range(160)]
    return halves(tokens(said, path), 80)


def sentence_truth(path: Path) -> Callable[[Answers], float]:
    """Rank correlation of cosines with how many of four meanings pairs of sentences share, told in other words."""
    rng, count = np.random.default_rng(7), 1000
    first, shared = rng.integers(0, 10, (count, 4)), rng.integers(0, 5, count)
    second = (first + rng.integers(1, 10, first.shape)) % 10
    for row, own, same in zip(second, first, shared, strict=True):
        kept = rng.permutation(4)[:same]
        row[kept] = own[kept]
    feeds = tokens([*(sentence(row) for row in first), *(sentence(row, SAME) for row in second)], path)

    def correlation(answers: Answers) -> float:
        y = answers(feeds)["last_hidden_state"].mean(1)
        y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
        cosines = (y[:count] * y[count:]).sum(1)
        return 0.0 if np.ptp(cosines) < 1e-6 else float(spearmanr(cosines, shared)[0])  # type: ignore[arg-type]

    return correlation


def copies(count: int, start: int, split: str = "train1000") -> tuple[np.ndarray, np.ndarray]:
    """Crops of photographs (N, 3, 112, 112), and the same turned, shifted, darkened and noisy."""
    rng, photos = np.random.default_rng(start), imagenet.Images(split, start, count)
    one, two = [], []
    for k in range(count):
        with Image.open(io.BytesIO(photos.zip.read(photos.names[k]))) as photo:
            image = photo.convert("RGB").resize((124, 124))
        turned = image.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
        pixels, other = (np.asarray(x, np.float32) for x in (image, turned))
        top, left = rng.integers(0, 12, 2)
        one.append(pixels[6:118, 6:118])
        two.append(other[top : top + 112, left : left + 112] * rng.uniform(0.4, 1.1) + rng.normal(0, 24, (112, 112, 3)))
    return tuple(((np.stack(x).transpose(0, 3, 1, 2) - 127.5) / 127.5).astype(np.float32) for x in (one, two))  # type: ignore[return-value]


def copy_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"input.1": copies(160, 0)[0]}, 80)


def copy_truth(path: Path, starts: Sequence[int] = (300,)) -> Callable[[Answers], float]:
    """Share of changed copies of which the nearest of 150 images is the one that they were made of."""
    groups = [copies(150, start) for start in starts]

    def found(answers: Answers) -> float:
        return float(np.mean([share(*(answers({"input.1": x})["516"] for x in group)) for group in groups]))

    def share(a: np.ndarray, b: np.ndarray) -> float:
        a, b = (y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12) for y in (a, b))
        near = b @ a.T
        return float(((near >= np.diag(near)[:, None]).sum(1) == 1).mean())

    return found
