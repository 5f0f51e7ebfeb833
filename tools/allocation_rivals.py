"""Other tools' choice of units against the plain command: the same model, MACs, images, least squares and test images.

    pip install --no-deps torch-pruning
    python tools/allocation_rivals.py --model cifar10-resnet56-bn --macs 0.5

Rows: the plain command; uniform widths in the order of the method that it takes; onnxsim's structured pruning by
weights and activations (apply_structured_wanda_pruning: of its own, that which cuts units by samples), of which the
sparsity is searched for (it cuts nothing in front of a BatchNorm, so it is given the network with these folded);
Torch-Pruning's criteria, taylor with labels, in ResNets inside of blocks only: in a residual stream it keeps, behind a
shortcut that pads, channels of which it removed the source, which no plan of ours can say. onnxsim and Torch-Pruning
refit nothing: which positions they keep is read off their results, and these are refitted by our least squares. Nothing
is fine-tuned, kept sizes are multiples of one. The models and images are those of $ONNXPRUNE_DATA, see cifar.py.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from operator import itemgetter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "zoo"))
sys.path.insert(0, str(Path(__file__).parent))
import allocation_study as study
import cifar
import cifar_resnet
import torch_modules
import torch_pruning_cifar

from onnxprune import graph, surgery
from onnxprune.bridge.batchnorm import fold_batchnorm
from onnxprune.coupling import Coupling, Keep, unit_positions
from onnxprune.data import Samples, input_infos, load_samples
from onnxprune.options import Options
from onnxprune.plan.select import Selection
from onnxprune.recover import levels
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.system.clock import Clock
from tools.zoo.onnxsim_worker import float_arrays, kept_positions

HEAD = """\
| units chosen by | MACs | parameters | as cut | after least squares | 95 % interval | seconds of the choice |
|---|---:|---:|---:|---:|---|---:|"""
ROWS = ("onnxprune", "onnxsim", "torch-pruning")
TRIALS = 12  # of onnxsim's sparsity, by bisection
Arrays = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56-bn", help="of $ONNXPRUNE_DATA; ResNets with BatchNorm")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=5000, help="training images")
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--start", type=int, default=0, help="the first of the test images")
    parser.add_argument("--calibration", type=int, default=256, help="images that onnxsim looks at")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="the tools that are compared")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(HEAD)
    for line in rows(args):
        print(line, flush=True)


def rows(args: argparse.Namespace) -> Iterator[str]:
    """A line for each tool."""
    path = cifar.DATA / "models" / f"{args.model}.onnx"
    x, tested = study.images(args.model, args.samples, args.test, args.start)
    given = {"data": x, "target": {"macs": args.macs}, "align": 1, "latency": False, "recover": "reconstruct"}
    given |= {"val": tested}
    options = Options(**given)
    subject = prepare(path, options, Clock())
    test = load_samples(tested, input_infos(subject.model))
    subject, outcome = study.schedule.scored(subject, resolved(options), Clock())
    ours = (("onnxprune, plain command", None), ("onnxprune, uniform widths", "uniform"))
    for name, allocate in ours if "onnxprune" in args.rows else ():
        settings = resolved(Options(**given, allocate=allocate))
        start = time.process_time()
        chosen = study.allocation.allocated(subject, outcome, settings, Clock())
        selection = next(study.search.selections(subject, chosen, settings))
        yield row(name, subject, selection, test, time.process_time() - start)
    if "onnxsim" in args.rows:
        start = time.process_time()
        share, selection = by_onnxsim(path, subject, x[: args.calibration], args.macs)
        name = "onnxsim, wanda" if share <= args.macs else "onnxsim, wanda, the smallest that it makes"
        yield row(name, subject, selection, test, time.process_time() - start)
    if "torch-pruning" in args.rows:
        yield from by_torch_pruning(path, subject, args, x, test)


def by_torch_pruning(
    path: Path, subject: Subject, args: argparse.Namespace, x: np.ndarray, test: Samples
) -> Iterator[str]:
    """A row for each criterion that the network has what it takes for."""
    labelled = load_samples((x, study.labels(args.model, args.samples)), input_infos(subject.model))
    residual = "resnet" in args.model
    for criterion in torch_pruning_cifar.CRITERIA:
        if criterion == "bn" and not residual:  # its BatchNorm is folded
            continue
        start = time.process_time()
        if residual:
            selection = of_resnet(path, subject, criterion, args.macs, labelled)
        else:
            selection = of_file(subject, criterion, args.macs, labelled)
        yield row(f"Torch-Pruning, {criterion}", subject, selection, test, time.process_time() - start)


def of_resnet(path: Path, subject: Subject, criterion: str, macs: float, labelled: Samples) -> Selection:
    """What Torch-Pruning leaves of the network that the file was exported from."""
    network = cifar_resnet.load(path)
    whole = [network.last(), *torch_pruning_cifar.streams(network)]
    torch_pruning_cifar.prune(network, criterion, macs, labelled, whole, torch_pruning_cifar.SHORTCUTS["macs"])
    return selection_of(subject.coupling, {name: tensor.numpy() for name, tensor in network.state_dict().items()})


def of_file(subject: Subject, criterion: str, macs: float, labelled: Samples) -> Selection:
    """What Torch-Pruning leaves of torch modules that were made of the file."""
    network = torch_modules.Modules(torch_modules.widened(subject.model.clone(), apart=True))
    before = network.arrays()
    torch_pruning_cifar.prune(network, criterion, macs, labelled, [network.last()], 0)
    return selection_of(subject.coupling, network.arrays(), before)


def by_onnxsim(path: Path, subject: Subject, x: np.ndarray, macs: float) -> tuple[float, Selection]:
    """(share of the MACs, what is left): the largest size of at most `macs` that onnxsim makes, else its smallest."""
    from onnxsim.pruning import apply_structured_wanda_pruning

    name = input_infos(subject.model)[0].name
    calibration = [{name: x[k : k + 32]} for k in range(0, len(x), 32)]
    network = torch_modules.widened(graph.load(path), apart=True)
    fold_batchnorm(network)
    given = ir.to_proto(network)
    low, high = 0.0, 0.95
    found: list[tuple[float, Selection]] = []
    for _ in range(TRIALS):
        sparsity = (low + high) / 2
        made = apply_structured_wanda_pruning(deepcopy(given), calibration, sparsity=sparsity, global_sparsity=True)
        selection = selection_of(subject.coupling, float_arrays(made), float_arrays(given))
        share = study.shares(subject, selection)[0]
        found.append((share, selection))
        high, low = (sparsity, low) if share <= macs else (high, sparsity)
    small = [each for each in found if each[0] <= macs]
    return max(small, key=itemgetter(0)) if small else min(found, key=itemgetter(0))


def selection_of(coupling: Coupling, arrays: Arrays, before: Arrays | None = None) -> Selection:
    """What of each dimension is left in `arrays`, weights of which other tools removed positions.

    before: the weights that they were made of, by default the model's own.
    Raises: ValueError where these are no positions of a dimension, or two weights disagree on them.
    """
    keep: Keep = {}
    wholes = coupling.model.graph.initializers
    for dim in coupling.free:
        masks: dict[str, np.ndarray] = {}
        for member in coupling.members[dim]:
            own = graph.array_of(wholes[member.initializer]) if before is None else before.get(member.initializer)
            whole, part = own, arrays.get(member.initializer)
            if whole is None or part is None or part.ndim != whole.ndim or whole.ndim < 2:
                continue
            left = kept_positions(whole, part)
            if left is None:
                raise ValueError(f"'{member.initializer}' holds other numbers than before")
            units = unit_positions(coupling.axes[member.initializer][member.axis], dim)
            masks[member.initializer] = np.isin(np.arange(dim.size), units[left[member.axis]])
        first = next(iter(masks.values()), np.ones(dim.size, bool))
        if any(not np.array_equal(first, mask) for mask in masks.values()):
            raise ValueError(f"the weights of '{dim.name}' do not agree on what is left of it: {', '.join(masks)}")
        keep[dim] = first
    return Selection(coupling, keep)


def row(name: str, subject: Subject, selection: Selection, test: Samples, seconds: float) -> str:
    """A line of the table: what is left, and accuracy before and after least squares."""
    model = surgery.cut(selection)
    cut = study.shown(model, test)[0]
    how = resolved(Options(data="digits", recover="reconstruct")).recovery
    levels.recover(subject.given, selection, model, how, Clock())
    shares = (f"{share:.3f}" for share in study.shares(subject, selection))
    return f"| {' | '.join((name, *shares, cut, *study.shown(model, test), f'{seconds:.0f}'))} |"


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
