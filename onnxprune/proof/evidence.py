"""The proof as evidence: what was compared, how far apart it was, how much was allowed; what could not be tested.

A verification follows from its evidence alone: it holds where no item differs by more than is allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxprune.errors import VerificationError
from onnxprune.proof.differences import Place

# What ends the message of a proof that does not hold: of our own work, and of a file that a user gave.
REPORT = "nothing was written. Please report this model"
NOT_BY_PLAN = "it was not made from this model by this plan, or it was changed since"
KINDS = {  # as a reader is told
    "output": "output",
    "part": "part of an output",
    "inside": "value inside",
    "decision": "what a decision is made on",
    "table": "rows of a table",
    "setting": "a bound, threshold or setting of an operator",
    "piece": "a piece of the model on random numbers",
    "branch": "branch that was not taken",
    "body": "value that the body of an If, Loop or Scan gives",
}


@dataclass(frozen=True)
class Evidence:
    """One value of the cut model against the same value of its twin, at the place that differs most."""

    kind: str  # see KINDS
    where: str  # name of the value
    place: str = ""  # position of an axis, or nothing where the value as a whole is meant
    size: float = 0.0  # largest number of the twin there
    difference: float = 0.0
    allowed: float = 0.0
    why: str = ""  # so much is allowed
    rows: int = 0
    untested: str = ""  # why nothing could be compared, or what the comparison cannot show

    @property
    def ok(self) -> bool:
        """Whether both models agree here, as far as rounding allows."""
        return self.difference <= self.allowed

    @property
    def share(self) -> float:
        """The difference divided by the allowed one; above 1 the comparison fails."""
        if not self.difference:
            return 0.0
        return self.difference / self.allowed if self.allowed else float("inf")


@dataclass(frozen=True)
class Verification:
    """How far the cut model is from the masked one; made by `conclude` from evidence."""

    max_abs: float
    scale: float  # largest absolute masked output
    samples: int  # number of rows compared, summed over the inputs
    ok: bool
    worst: str = ""  # the value that uses most of what is allowed
    note: str = ""
    allowed: float = 0.0  # difference that is allowed at the worst place
    evidence: tuple[Evidence, ...] = field(default=(), repr=False)
    replayed: tuple[str, ...] = ()  # operators that decide, fed with what the twin decided on


def item(kind: str, where: str, found: Place, rows: int, untested: str = "") -> Evidence:
    """Evidence of the place where a value differs most."""
    why = f"{found.noise:.2g} is its own noise" if found.noise else "rounding of its size"
    return Evidence(kind, where, found.place, found.size, found.difference, found.allowed, why, rows, untested)


def conclude(
    evidence: Sequence[Evidence], samples: int, notes: Sequence[str] = (), replayed: Sequence[str] = ()
) -> Verification:
    """The verification that follows from `evidence`; the first worst item that is no output is named in its note."""
    outputs = [found for found in evidence if found.kind in ("output", "part")]
    wrong = [found for found in evidence if not found.ok]
    told = tuple(filter(None, [*notes, *_summary(evidence, replayed)]))
    if wrong:
        # Values inside come in the order of the graph, so the first that is wrong is nearest to the cause.
        shown = max((e for e in wrong if e in outputs), key=lambda e: e.share, default=wrong[0])
        worst = shown.where.split(": ")[0]
    else:
        shown = max((e for e in evidence if e.kind == "output"), key=_relative, default=None)
        worst = max(evidence, key=lambda e: e.share).where if evidence else ""
    most = (shown.difference, shown.size, shown.allowed) if shown is not None else (0.0, 0.0, 0.0)
    return Verification(
        most[0],
        most[1],
        samples,
        not wrong,
        worst,
        "; ".join(told),
        most[2],
        tuple(evidence),
        tuple(replayed),
    )


def _relative(found: Evidence) -> float:
    return found.difference / found.size if found.size else float("inf") if found.difference else 0.0


def _summary(evidence: Sequence[Evidence], replayed: Sequence[str]) -> list[str]:
    """Remarks on what was compared beside the outputs: values inside, decisions, what could not be tested."""
    inside = [found for found in evidence if found.kind not in ("output", "part") and not found.untested]
    told: list[str] = []
    if inside:
        many = f"{len(inside)} values inside agree" if len(inside) > 1 else "1 value inside agrees"
        told.append(many if all(found.ok for found in inside) else "values inside differ")
    if replayed:
        many = f"{len(replayed)} operators that round or rank" if len(replayed) > 1 else f"'{replayed[0]}'"
        told.append(f"{many} decided on the same numbers in both models")
    untested = [found for found in evidence if found.untested]
    if untested:
        more = f", and {len(untested) - 1} more" if len(untested) > 1 else ""
        told.append(f"not tested: '{untested[0].where}' ({untested[0].untested}){more}")
    return told


def require(verification: Verification, what: str = "the cut model", advice: str = REPORT) -> Verification:
    """`verification` of `what`, when it holds. Raises: VerificationError otherwise, which ends with `advice`."""
    if verification.ok:
        return verification
    raise VerificationError(f"{what} differs from the masked model {failure(verification)}; {advice}")


def failure(verification: Verification) -> str:
    """Where a verification that does not hold found a difference, and by how much: the end of a sentence."""
    wrong = [e for e in verification.evidence if not e.ok]
    within = next((e for e in wrong if e.kind not in ("output", "part")), None)
    place = next((e.place for e in wrong if e.difference == verification.max_abs and e.place), "")
    first = ""
    if within is not None and within.where != verification.worst:
        first = f"; of the values inside '{within.where}' is the first that differs, by {within.difference:.3g}"
    return (
        f"at '{verification.worst}'{f' ({place})' if place else ''} by "
        f"{verification.max_abs:.3g}, where numbers are up to {verification.scale:.3g} and "
        f"{verification.allowed:.2g} is allowed{first}"
    )
