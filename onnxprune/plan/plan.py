"""A plan as data: which positions every Dim keeps, and which slices of which initializers that means.

It is enough for anyone to check a result: in the normalized model, zero the slices that are not kept, run both.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onnxprune.coupling import Coupling, dims
from onnxprune.errors import UsageError
from onnxprune.plan import matching
from onnxprune.plan.select import Selection
from onnxprune.system.atomic_files import replace_text

FORMAT = "onnxprune-plan/1"


@dataclass(frozen=True)
class DimPlan:
    """The positions that one Dim keeps; `exact` where removing equals silencing."""

    name: str
    size: int
    keep: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class SlicePlan:
    """The positions that one use of an initializer keeps on one axis."""

    initializer: str
    node: str
    input: int
    axis: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class BlockPlan:
    """A block that goes as a whole, by the node that adds it; constant: whether a constant is added in its place."""

    name: str
    constant: bool = False


@dataclass(frozen=True)
class Plan:
    """A plan: the kept positions of one model, the method that chose them, costs before and after."""

    method: str
    seed: int
    model_sha256: str
    model_name: str
    dims: tuple[DimPlan, ...]
    slices: tuple[SlicePlan, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]
    recover: str = "none"
    tool: str = ""
    result_sha256: str = ""  # of the file that this plan was written with
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])  # every choice made
    quantize: Mapping[str, Any] | None = None  # how the result was stored: what was asked, ranges, what stayed in float
    tokens: tuple[int, ...] = ()  # ids of the vocabulary that stay, where --keep-tokens cut it before all else
    states: tuple[Mapping[str, Any], ...] = ()  # axes of the interface that --states narrow cut
    blocks: tuple[BlockPlan, ...] = ()  # that go as a whole, before all else
    silenced: tuple[SlicePlan, ...] = ()  # what makes these blocks zero: slices of which nothing is kept

    def to_json(self) -> dict[str, Any]:
        """The plan file of interfaces.md."""
        quantize = {} if self.quantize is None else {"quantize": dict(self.quantize)}
        return {
            "format": FORMAT,
            "tool": self.tool,
            "method": self.method,
            "seed": self.seed,
            "recover": self.recover,
            "model": {"sha256": self.model_sha256, "name": self.model_name},
            "result": {"sha256": self.result_sha256 or None},
            "settings": {name: dict(entry) for name, entry in self.settings.items()},
            "dims": [{"name": d.name, "size": d.size, "keep": list(d.keep), "exact": d.exact} for d in self.dims],
            "slices": [
                {"initializer": s.initializer, "node": s.node, "input": s.input, "axis": s.axis, "keep": list(s.keep)}
                for s in (*self.slices, *self.silenced)
            ],
            "cost": {"before": dict(self.before), "after": dict(self.after)},
            **quantize,
            **({"tokens": list(self.tokens)} if self.tokens else {}),
            **({"states": [dict(entry) for entry in self.states]} if self.states else {}),
            **({"blocks": [vars(block) for block in self.blocks]} if self.blocks else {}),
        }


def make(
    selection: Selection,
    *,
    seed: int,
    sha256: str,
    name: str,
    before: Mapping[str, int],
    after: Mapping[str, int],
) -> Plan:
    """The plan of a selection; before, after: its costs."""
    chosen = {dim: mask for dim, mask in selection.keep.items() if not mask.all()}
    entries = tuple(
        DimPlan(dim.name, dim.size, _positions(chosen[dim]), dim.reduced is None)
        for dim in selection.coupling.dims
        if dim in chosen
    )
    slices = slices_of(replace(selection, keep=chosen))
    costs = dict(before), dict(after)
    return Plan(selection.method, seed, sha256, name, entries, slices, *costs, tool=tool_version())


def slices_of(selection: Selection) -> tuple[SlicePlan, ...]:
    """Every use of every initializer that loses positions on an axis."""
    found: list[SlicePlan] = []
    coupling, keep = selection.coupling, selection.keep
    for node in coupling.model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer():
                continue
            for position, axis in enumerate(coupling.axes.get(value.name or "", ())):
                if any(dim in keep for dim in dims.leaves(axis)):
                    mask = selection.mask_of(axis)
                    found.append(SlicePlan(value.name or "", node.name or "", index, position, _positions(mask)))
    return tuple(found)


def selection_of(plan: Plan, coupling: Coupling) -> Selection:
    """The selection that `plan` describes, for the model of `coupling`, where some weights may have other names.

    Raises: UsageError when the plan belongs to another model, or was edited so that its parts disagree.
    """
    known = {dim.name: dim for dim in coupling.dims}
    for entry in plan.dims:
        if entry.name in known and known[entry.name].size != entry.size:
            raise UsageError(
                f"the plan has '{entry.name}' with {entry.size} positions, but in the model there it has "
                f"{known[entry.name].size}: it was made for another model"
            )
    if all(entry.name in known for entry in plan.dims):
        keep = {known[entry.name]: matching.mask_of(entry.keep, known[entry.name]) for entry in plan.dims}
        found = Selection(coupling, keep, plan.method)
        if set(slices_of(found)) == set(plan.slices):
            return found
    return Selection(coupling, matching.matched(plan, coupling), plan.method)


def save(plan: Plan, path: str | Path) -> None:
    """Writes the plan file, whole or not at all."""
    replace_text(Path(path), json.dumps(plan.to_json(), indent=1) + "\n")


def load(path: str | Path) -> Plan:
    """The plan in file `path`. Raises: UsageError when it is missing, not JSON, not a plan, or inconsistent."""
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such plan file; 'onnxprune IN OUT --plan FILE' writes one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a plan file ({type(error).__name__}); write it again with --plan") from error
    record = cast(dict[str, Any], data) if isinstance(data, dict) else {"format": type(data).__name__}
    if record.get("format") != FORMAT:
        seen = record.get("format")
        raise UsageError(f"{path}: format is '{seen}', expected '{FORMAT}'; write the plan again with this version")
    try:
        return _parse(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the plan is damaged ({type(error).__name__}: {error}); write it again") from error


def _parse(data: dict[str, Any]) -> Plan:
    """The plan in a JSON document. Raises: KeyError, TypeError or ValueError where the document is none."""
    entries = tuple(
        DimPlan(_text(d["name"]), _whole(d["size"]), _kept(d["keep"], d["size"], d["name"]), _truth(d["exact"]))
        for d in data["dims"]
    )
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' stands twice in 'dims'")
    blocks = tuple(
        BlockPlan(_text(b["name"]), _truth(b["constant"])) for b in cast(list[dict[str, Any]], data.get("blocks") or [])
    )
    slices = tuple(_slice(s, may_be_empty=bool(blocks)) for s in data["slices"])
    model, cost = data["model"], data["cost"]
    return Plan(
        _text(data["method"]),
        _whole(data["seed"]),
        _text(model["sha256"]),
        str(model.get("name", "")),
        entries,
        tuple(s for s in slices if s.keep),
        {str(k): _count(v) for k, v in cost["before"].items()},
        {str(k): _count(v) for k, v in cost["after"].items()},
        str(data.get("recover", "none")),
        str(data.get("tool", "")),
        str(cast(dict[str, Any], data.get("result") or {}).get("sha256") or ""),
        {str(name): dict(entry) for name, entry in cast(dict[str, Any], data.get("settings") or {}).items()},
        _quantize(data.get("quantize")),
        tuple(sorted({_whole(k) for k in cast(list[Any], data.get("tokens") or [])})),
        tuple(_state(entry) for entry in cast(list[Any], data.get("states") or [])),
        blocks,
        tuple(s for s in slices if not s.keep),
    )


def _slice(found: dict[str, Any], *, may_be_empty: bool) -> SlicePlan:
    """A slice of a plan; nothing of it may be kept only where blocks go as a whole."""
    name = _text(found["initializer"])
    keep = () if may_be_empty and found["keep"] == [] else _rising(found["keep"], name)
    return SlicePlan(name, _text(found["node"]), _count(found["input"]), _count(found["axis"]), keep)


def _quantize(found: dict[str, Any] | None) -> Mapping[str, Any] | None:
    """The record of a quantization, its parts of the types that they have to be."""
    if found is None:
        return None
    ranges = {str(name): (float(low), float(high)) for name, (low, high) in found.get("ranges", {}).items()}
    return {**found, "options": str(found["options"]), "float": [str(n) for n in found["float"]], "ranges": ranges}


def _state(found: dict[str, Any]) -> Mapping[str, Any]:
    """An axis of a state that was narrowed, see surgery/narrow.py."""
    names = {key: _text(found[key]) for key in ("input", "output")}
    size = _whole(found["size"])
    return {
        **names,
        "axis": _whole(found["axis"]),
        "size": size,
        "keep": list(_kept(found["keep"], size, names["input"])),
    }


def _whole(value: Any) -> int:
    """`value`, which must be a whole number as JSON writes one: what 1.7 or "1" was meant to be nobody knows."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def _count(value: Any) -> int:
    if _whole(value) < 0:
        raise ValueError(f"{value} is below 0")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _kept(keep: list[int], size: int, name: str) -> tuple[int, ...]:
    kept = _rising(keep, name)
    if kept[-1] >= size:
        raise ValueError(f"'keep' of '{name}' must be rising positions below {size}, at least one")
    return kept


def _rising(keep: list[int], name: str) -> tuple[int, ...]:
    kept = tuple(_whole(k) for k in keep)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0:
        raise ValueError(f"'keep' of '{name}' must be rising positions from 0 on, at least one")
    return kept


def with_recovery(plan: Plan, level: str, result_sha256: str = "") -> Plan:
    """The plan with the recovery level that followed it, and the hash of the file that came of it."""
    return replace(plan, recover=level, result_sha256=result_sha256)


def with_quantization(plan: Plan, record: Mapping[str, Any]) -> Plan:
    """The plan with how its result was quantized."""
    return replace(plan, quantize=dict(record))


@functools.cache
def tool_version() -> str:
    """The version of this tool."""
    try:
        return version("onnxprune")
    except PackageNotFoundError:  # run from its source
        return "0+source"


def _positions(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(k) for k in np.flatnonzero(mask))
