"""Tests the proof by mutation: cuts networks honestly, damages the cuts, and counts what the proof lets through.

    python tools/mutants.py --count 1000 --seed 0 --jobs 2

Draws networks (mutant_networks.py), a random plan for each, and damages of the honest cut (mutant_damages.py). The
honest cut has to be accepted: refusals are counted, and listed as they are. A mutant is handed to the proof as `verify`
does it without samples: the same interface and operators, the same comparison, the same random inputs.

Which mutants count is found out without the proof. Both models are run on many inputs of both probe sizes: normal
numbers of several magnitudes, all positive ones, integers over their whole range, every one of them at least once. A
mutant counts where, on one of these inputs, some position of some output differs from the honest cut's by more than

    3 x noise + 1e-4 x the position's own size (its largest magnitude over the batch)

in which noise is the most that this output of the honest cut moves anywhere, on any of these inputs, when
onnxruntime's optimizations are switched on, or when the input is moved by a rounding error. For integers and truth
values any difference counts, on inputs on which the honest cut says the same in all of these ways. Where shapes
differ, the mutant counts; where the mutant does not run, it does not.

The last line is `N mutants, M survived`. Exit code 1 where a mutant survived or an honest cut was refused, else 0. The
same count and seed give the same mutants, whatever the number of jobs.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parent))

from mutant_damages import DAMAGES, Case
from mutant_networks import Net, networks

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, analyze
from onnxprune.errors import OnnxPruneError
from onnxprune.graph import half, sessions, shapes
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, decisions, interface, noise
from onnxprune.system.isolation import CrashedError, isolated

PER_PLAN, ATTEMPTS = 10, 40  # mutants of one plan, and how many are tried for them
NOISES, OWN_SIZE = 3.0, 1e-4
MOVED = 3e-7  # relative size of a rounding error of the input
WAYS = ("normal", "small", "large", "positive", "normal", "normal")
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Mutant:
    """One mutant that counts."""

    net: str
    kind: str
    damage: str
    place: str
    survived: bool


@dataclass
class Found:
    """What one task found: a network with one plan."""

    mutants: list[Mutant] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tried: int = 0
    broken: int = 0  # mutants that do not run
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """A network, analysed, with the inputs of the proof and those that tell which mutants count."""

    net: Net
    coupling: Coupling
    feeds: list[Feeds]
    probes: list[Feeds]


@cache
def prepared(name: str, folder: str) -> Prepared:
    net = networks()[name]
    path = Path(folder, f"{name}.onnx")
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        onnx.save(net.build(), part)
        part.rename(path)
    model = graph.normalize(graph.load(path))
    observed = shapes.observe(model)
    feeds = comparison.random_feeds(model, observed, 0)
    return Prepared(net, analyze(model, observed), feeds, list(probes(model, observed, net.below)))


# Which mutants count --------------------------------------------------------------------------------------------------


def probes(model: ir.Model, observed: shapes.Shapes, below: Mapping[str, int]) -> Iterator[Feeds]:
    """Legal inputs in all ways at both sizes; integers take every value that they can."""
    for shape in dict.fromkeys(map(_frozen, (observed.probe, observed.second or observed.probe))):
        sizes = {name: tuple(size) for name, size in shape}
        covering = [
            -(-below.get(v.name or "", 2) // max(1, int(np.prod(sizes[v.name or ""]))))
            for v in model.graph.inputs
            if v.dtype is not None and v.dtype.is_integer()
        ]
        for number in range(max(len(WAYS), *covering, 0)):
            rng = np.random.default_rng(1000 + number)
            way = WAYS[number % len(WAYS)]
            feeds = {v.name or "": _drawn(v, sizes[v.name or ""], way, number, below, rng) for v in model.graph.inputs}
            yield feeds
            if number == 0:
                yield from (one for one in comparison.alone(model, feeds) if _runs(model, one))


def _runs(model: ir.Model, feeds: Feeds) -> bool:
    with suppress(OnnxPruneError):
        return bool(sessions.run(session(model), feeds))
    return False


def _frozen(sizes: Mapping[str, tuple[int, ...]]) -> tuple:
    return tuple((name, tuple(size)) for name, size in sizes.items())


def _drawn(
    value: ir.Value, size: tuple[int, ...], way: str, number: int, below: Mapping[str, int], rng: np.random.Generator
) -> np.ndarray:
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if dtype.kind == "b":
        return rng.random(size) < 0.5
    if dtype.kind in "iu":
        most, count = below.get(value.name or "", 2), int(np.prod(size))
        walked = (number * count + np.arange(count)) % most
        return rng.permutation(walked).reshape(size).astype(dtype)
    x = rng.normal(size=size) * {"small": 0.2, "large": 4.0}.get(way, 1.0)
    return np.asarray(np.abs(x) if way == "positive" else x).astype(dtype)


class Honest:
    """What the honest cut gives on the probes, and its noise."""

    def __init__(self, model: ir.Model, feeds: list[Feeds]) -> None:
        self.feeds = feeds
        plain = session(model)
        self.said = [sessions.run(plain, feed) for feed in feeds]
        fast = session(model, optimize=True)
        others = [sessions.run(fast, feed) for feed in feeds], [sessions.run(plain, _moved(feed)) for feed in feeds]
        names = list(self.said[0])
        self.noise = {
            n: max(_most(a[n], b[n]) for run in others for a, b in zip(run, self.said, strict=True)) for n in names
        }
        self.sure = [
            {n: all(_most(run[k][n], said[n]) == 0 for run in others) for n in names}
            for k, said in enumerate(self.said)
        ]

    def differs(self, model: ir.Model) -> bool:
        """Whether `model` counts as different. Raises: GraphError where it does not run."""
        other = session(model)
        return any(self._differ(k, sessions.run(other, feed)) for k, feed in enumerate(self.feeds))

    def _differ(self, number: int, outputs: Mapping[str, Any]) -> bool:
        for name, ours in self.said[number].items():
            theirs = outputs[name]
            if not isinstance(ours, np.ndarray) or ours.dtype.kind not in "fiub":
                continue
            if ours.shape != theirs.shape:
                if self.sure[number][name] or ours.dtype.kind == "f":
                    return True
                continue
            if ours.dtype.kind != "f":
                if self.sure[number][name] and not np.array_equal(ours, theirs):
                    return True
                continue
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            own = np.abs(np.where(np.isfinite(a), a, 0)).max(axis=0, keepdims=True, initial=0) if a.ndim else np.abs(a)
            far = ~(
                (np.abs(a - b) <= NOISES * self.noise[name] + OWN_SIZE * own) | (a == b) | (np.isnan(a) & np.isnan(b))
            )
            if far.any():
                return True
        return False


def session(model: ir.Model, optimize: bool = False) -> Any:
    return sessions.open_session(model, threads=1, optimize=optimize)


def _moved(feeds: Feeds) -> Feeds:
    rng = np.random.default_rng(7)
    return {
        n: (x * (1 + MOVED * rng.choice((-1, 1), x.shape))).astype(x.dtype) if x.dtype.kind == "f" else x
        for n, x in feeds.items()
    }


def _most(a: Any, b: Any) -> float:
    if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub":
        return 0.0
    if a.shape != b.shape:
        return np.inf
    with np.errstate(invalid="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.nan_to_num(difference, nan=0.0, posinf=np.inf).max(initial=0))


# Mutants --------------------------------------------------------------------------------------------------------------


def plan_of(coupling: Coupling, random: Random) -> dict:
    """Random positions of every free Dim, at least one of each."""
    rng, share = np.random.default_rng(random.getrandbits(32)), random.uniform(0.35, 0.9)
    keep = {}
    for dim in coupling.free:
        keep[dim] = rng.random(dim.size) < share
        keep[dim][rng.integers(dim.size)] = True
    return keep


def task(name: str, number: int, seed: int, folder: str, most: int = PER_PLAN) -> Found:
    """At most `most` mutants of one network with plan `number`."""
    start = time.perf_counter()
    try:
        prepared(name, folder)  # here, where it is remembered
        found = isolated(partial(_task, name, number, seed, folder, most))
    except CrashedError as crash:
        found = Found(refused=[f"{name}, plan {number}: a library ended the process ({crash})"])
    found.seconds = time.perf_counter() - start
    return found


def _task(name: str, number: int, seed: int, folder: str, most: int) -> Found:
    subject = prepared(name, folder)
    random = Random(zlib.crc32(f"{seed} {number} {name}".encode()))
    keep = plan_of(subject.coupling, random)
    cut, masked = surgery.cut(Selection(subject.coupling, keep)), surgery.mask(Selection(subject.coupling, keep))
    judge = partial(comparison.compare, masked=masked, feeds=subject.feeds)
    with Twin(masked):
        said = judge(cut)
        if said.ok:
            case = Case(subject.coupling, keep, cut)
            return _mutants(subject, case, partial(_accepts, judge, case), random, most)
    return Found(refused=[f"{name}, plan {number}: '{said.worst}' differs by {said.max_abs:.3g}; {said.note}"])


def _mutants(subject: Prepared, case: Case, accepts: Any, random: Random, most: int) -> Found:
    """Mutants of one honest cut, each handed to the proof."""
    found, done = Found(), set()
    honest = Honest(case.cut, subject.probes)
    while len(found.mutants) < most and found.tried < ATTEMPTS:
        damage, mutant = random.choice(list(DAMAGES)), graph.copy(case.cut)
        places = [place for place in DAMAGES[damage](case, mutant) if (damage, place[0]) not in done]
        if not places:
            found.tried += (damage, "") in done
            done.add((damage, ""))
            continue
        found.tried += 1
        where, change = random.choice(places)
        done.add((damage, where))
        change(random)
        try:
            if not honest.differs(mutant):
                continue
        except OnnxPruneError:
            found.broken += 1
            continue
        found.mutants.append(Mutant(subject.net.name, subject.net.kind, damage, where, accepts(mutant)))
    return found


def _accepts(judge: Any, case: Case, mutant: ir.Model) -> bool:
    """Whether `mutant` would be taken for the cut of this plan: by its interface, its operators and its numbers."""
    try:
        interface.check(case.coupling.model, mutant, Path("mutant"))
        return not interface.added(mutant, case.coupling.model, case.cut) and judge(mutant).ok
    except OnnxPruneError:  # runs on other inputs, but not on those of the proof
        return False


class Twin:
    """Within it the proof opens each session of the masked model, and makes each copy of that, once.

    Nothing else changes: the proof does the same with the same models, only not once more for every mutant.
    """

    def __init__(self, masked: ir.Model) -> None:
        self.known, self.made = {id(masked): masked}, {}
        self.patches = [
            patch.object(sessions, "open_session", self.once(sessions.open_session)),
            patch.object(half, "single", self.once(half.single)),
            patch.object(noise, "moved", self.once(noise.moved)),
            patch.object(decisions, "fed", self.once(decisions.fed, looked_at=1)),
        ]

    def once(self, function: Any, looked_at: int | None = None) -> Any:
        """`function`, called once for each model that is known here and the first `looked_at` other arguments."""

        def remembered(model: Any, *args: Any, **kw: Any) -> Any:
            if id(model) not in self.known:
                return function(model, *args, **kw)
            key = (function.__name__, id(model), repr(args[:looked_at]), repr(sorted(kw.items())))
            if key not in self.made:
                made = self.made[key] = function(model, *args, **kw)
                self.known |= {id(made): made} if isinstance(made, ir.Model) else {}
            return self.made[key]

        return remembered

    def __enter__(self) -> Twin:
        for one in self.patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.patches:
            one.stop()


# All of them ------------------------------------------------------------------------------------------------------


def tasks(names: list[str], seed: int) -> Iterator[tuple[str, int]]:
    """(network, number of the plan), without an end, in an order that the seed decides."""
    number = 0
    while True:
        order = list(names)
        Random(seed * 1000 + number).shuffle(order)
        yield from ((name, number) for name in order)
        number += 1


def drawn(count: int, seed: int, names: list[str], folder: str, jobs: int) -> Generator[Found, None, None]:
    """What tasks find, in their order, until `count` mutants were found."""
    total, results = 0, _results(tasks(names, seed), seed, folder, jobs)
    with closing(results):
        while total < count:
            found = next(results)
            found.mutants = found.mutants[: count - total]
            total += len(found.mutants)
            yield found


def _results(order: Iterator[tuple[str, int]], seed: int, folder: str, jobs: int) -> Generator[Found, None, None]:
    if jobs == 1:
        yield from (task(*one, seed, folder) for one in order)
        return
    waiting: list[Future[Found]] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            while True:
                while len(waiting) < 4 * jobs:
                    waiting.append(pool.submit(task, *next(order), seed, folder))
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)


def export(folder: str, names: list[str]) -> None:
    """Writes the networks that torch has to export, in a process of its own."""
    wanted = [name for name in names if name.startswith("torch.")]
    if wanted:
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("mutant_networks.py")), folder, *wanted], check=True
        )


def table(mutants: list[Mutant], rows: str, columns: str) -> str:
    """Mutants by two of their properties as Markdown; survivors stand behind a slash."""
    heads = sorted({getattr(m, columns) for m in mutants})
    counts, lived = Counter(), Counter()
    for mutant in mutants:
        for row in (getattr(mutant, rows), "all"):
            for column in (getattr(mutant, columns), "all"):
                counts[row, column] += 1
                lived[row, column] += mutant.survived
    lines = [f"| {rows} | {' | '.join([*heads, 'all'])} |", f"|---|{'---:|' * (len(heads) + 1)}"]
    for row in [*sorted({getattr(m, rows) for m in mutants}), "all"]:
        cells = [
            f"{counts[row, c]}{f' / **{lived[row, c]}**' if lived[row, c] else ''}" if counts[row, c] else ""
            for c in [*heads, "all"]
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="mutants that count (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: the CPUs)"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="only these networks (default: all)")
    parser.add_argument("--no-torch", action="store_true", help="without the networks that torch exports")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="start no further network after them (default: none)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say now and then how far it is")
    parser.add_argument("--table", action="store_true", help="also print mutants by damage and kind of network")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.disable(logging.WARNING)
    names = [name for name in networks(torch=not args.no_torch) if not args.names or name in args.names]
    if not names:
        print(f"no such network; choose of {', '.join(networks())}", file=sys.stderr)
        return 2
    start, results = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        export(folder, names)
        with closing(drawn(args.count, args.seed, names, folder, args.jobs)) as found:
            for one in found:
                results.append(one)
                spent = time.perf_counter() - start
                tell(one, sum(len(r.mutants) for r in results), spent, verbose=args.verbose)
                if args.seconds and spent > args.seconds:
                    break
    return conclude(results, time.perf_counter() - start, with_table=args.table)


def tell(found: Found, done: int, seconds: float, *, verbose: bool) -> None:
    """Prints what got past the proof, and what the proof should not have refused."""
    for line in found.refused:
        print(f"honest cut refused: {line}", flush=True)
    for m in found.mutants:
        if m.survived:
            print(f"survived: {m.net} ({m.kind}), {m.damage}: {m.place}", flush=True)
    if verbose:
        print(f"{done} mutants after {seconds:.0f} s", file=sys.stderr, flush=True)


def conclude(results: list[Found], seconds: float, *, with_table: bool) -> int:
    """Prints the sums; the exit code."""
    mutants = [m for found in results for m in found.mutants]
    survived, refused = sum(m.survived for m in mutants), sum(len(found.refused) for found in results)
    if with_table:
        print(table(mutants, "damage", "kind"))
    tried, broken = sum(f.tried for f in results), sum(f.broken for f in results)
    print(
        f"{len(results)} honest cuts of {len({m.net for m in mutants})} networks, {refused} refused; "
        f"{tried} changes tried, {broken} of them do not run; {seconds:.0f} s"
    )
    print(f"{len(mutants)} mutants, {survived} survived")
    return 1 if survived or refused else 0


if __name__ == "__main__":
    sys.exit(main())
