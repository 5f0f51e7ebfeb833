"""A model card of a report: what the model is, what it was made from and how good it is; Markdown with a head of YAML.

The head has the keys that model hubs read; the text says nothing that the report does not hold.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.measure.records import QUANTIZED
from onnxprune.report import text
from onnxprune.system.words import counted

NAMES = {"macs": "MACs", "params": "parameters", "bytes": "file size"}


def to_card(found: Mapping[str, Any]) -> str:
    """The card of the document of a report on pruning. Raises: KeyError or TypeError for a damaged one."""
    original, result = found["models"][0], _result(found["models"])
    parts = [*_head(found, result), *_introduction(found, original, result), *_numbers(found, original, result)]
    return "\n".join([*parts, *_proof(found), *_notes(found), *_making(found, original)]) + "\n"


def _result(models: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The model that the run wrote: whatever else was measured stands behind it."""
    return next((model for model in models if model["name"] == QUANTIZED), models[1])


def _head(found: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    metric = result.get("accuracy")
    # Texts are written as JSON, which is YAML as well: names of files may hold anything.
    yield from ("---", "library_name: onnx", "tags: [onnx, pruned, onnxprune]")
    if metric:
        yield f"metrics: [{json.dumps(metric['metric'])}]"
    yield from (f"onnxprune_version: {json.dumps(str(found['tool'].get('version', '')))}", "---", "")


def _introduction(found: Mapping[str, Any], original: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    name, before = (Path(model["path"] or model["name"]).name for model in (result, original))
    yield from (f"# {name}", "")
    yield from (
        f"A smaller version of `{before}` with the same inputs and outputs, made by onnxprune with the method "
        f"{found.get('method') or 'of a plan'}.",
        "",
    )


def _numbers(found: Mapping[str, Any], original: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Numbers", "", "| | original | this model | ratio |", "|---|---|---|---|")
    for key, name in NAMES.items():
        write = text.size if key == "bytes" else text.count
        yield f"| {name} | {write(original[key])} | {write(result[key])} | {text.times(found['ratios'][key])} |"
    for one, ratio in zip(result.get("latency") or (), found["ratios"].get("latency") or (), strict=False):
        before = next((e["median_ms"] for e in original["latency"] if e["provider"] == one["provider"]), None)
        where = f"{text.provider(one['provider'])}, batch {one['batch']}, {counted(one['threads'], 'thread')}"
        cells = f"{text.milliseconds(before)} | {text.milliseconds(one['median_ms'])} | {text.times(ratio['median'])}"
        yield f"| latency, {where} | {cells} |"
    if result.get("accuracy"):
        values = [_accuracy(model.get("accuracy")) for model in (original, result)]
        yield f"| {text.metric(result['accuracy']['metric'])} | {values[0]} | {values[1]} | |"
    yield ""


def _accuracy(found: Mapping[str, Any] | None) -> str:
    if not found:
        return text.DASH
    value, *ends = (text.of_metric(found["metric"], n) for n in (found["value"], *(found.get("interval95") or ())))
    return value + (f" ({' to '.join(ends)} at 95 %, {counted(found['samples'], 'sample')})" if ends else "")


def _proof(found: Mapping[str, Any]) -> Iterator[str]:
    proof = found.get("verify")
    if not proof:
        return
    yield from ("## Proof", "")
    yield (
        f"On {counted(proof['samples'], 'sample')} the outputs differ by at most {proof['max_abs']:.2g}, where they "
        f"reach {proof['scale']:.2g}, from those of the full-size model with the removed parts set to zero."
    )
    yield ""


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("notes"):
        yield from ("## Notes", "", *(f"- {note}" for note in found["notes"]), "")


def _making(found: Mapping[str, Any], original: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## How it was made", "", "```", found["command"] or "onnxprune", "```", "")
    yield f"The original has the SHA-256 `{original['sha256']}`; the seed was {found.get('seed')}."
