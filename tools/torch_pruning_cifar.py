"""Rows of Torch-Pruning in a folder that `onnxprune compare` made: same weights, samples, steps and measurements.

    pip install --no-deps torch-pruning
    python tools/torch_pruning_cifar.py FOLDER --model cifar10-resnet56-bn --macs 0.5
    python tools/torch_pruning_cifar.py FOLDER --model cifar10-vgg16-fp16weights --params 0.15 --criteria taylor

The network is a torch module with the weights of the ONNX file (cifar_resnet.py, torch_modules.py); outputs are
compared before anything else. Torch-Pruning ranks all layers together and removes channels step by step until the
budget of MACs or parameters holds; then the network is trained natively on the labels: SGD with momentum, a cosine from
--lr, as many steps of as many samples as onnxprune's fine-tuning takes in that folder, flipped and shifted as there, in
the precision and memory layout that its settings name (--finetune amp=bf16), and of all epochs that which is best on
the same choosing samples. The result is exported to ONNX and measured as all other rows are.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.data import Samples, split
from onnxprune.graph import sessions
from onnxprune.measure import measure_file
from onnxprune.outputs import metrics
from onnxprune.plan import cost
from onnxprune.recover import asked
from onnxprune.recover import settings as recovery
from onnxprune.recover.augment import augment
from onnxprune.recover.levels import judged_share
from onnxprune.recover.teacher import precision
from onnxprune.run.subject import Subject, prepare
from onnxprune.studies.compare import loop, store
from onnxprune.system.clock import Clock
from tools import cifar, cifar_resnet, torch_modules

CRITERIA = ("magnitude", "bn", "taylor")
PRUNING_STEPS = 400  # of Torch-Pruning, as in its own benchmark
TAYLOR_BATCHES, TAYLOR_EVERY = 8, 25  # batches of a gradient, and steps after which it is taken anew
COSTS = ("macs", "params")  # as Torch-Pruning counts them
# Of the two shortcuts, which the ONNX file pads instead.
SHORTCUTS = {"macs": 2 * 16 * 32 * 16 * 16, "params": 16 * 32 + 32 * 64}
MOMENTUM, DECAY = 0.9, 5e-4


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of onnxprune compare")
    parser.add_argument(
        "--model", default="cifar10-resnet56-bn", help="of $ONNXPRUNE_DATA: a ResNet with BatchNorm, or a chain"
    )
    parser.add_argument("--criteria", nargs="+", default=CRITERIA, choices=CRITERIA)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--macs", type=float, default=0.5, help="share that remains (default: 0.5)")
    budget.add_argument("--params", type=float, help="share of the parameters that remains, instead of --macs")
    parser.add_argument("--lr", type=float, default=0.01, help="peak learning rate (default: 0.01)")
    parser.add_argument("--epochs", type=int, help="of fine-tuning (default: as in FOLDER)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu", help="for training (default: cpu)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = store.settings_in(args.folder)
    common = loop.common_of(found)
    path = cifar.DATA / "models" / f"{args.model}.onnx"
    subject = prepare(path, common, Clock())
    folder = store.Store(args.folder, loop.settings_of(subject, common))  # refuses other samples and models
    assert subject.tune is not None
    assert subject.held is not None
    done = {row["key"] for row in folder.rows()}
    original = loop.original_of(subject)
    check_equal(load(path), path, subject.tune)
    cost_name, share = budget_of(args)
    target = f"{cost_name}={share:g}"
    for seed in args.seeds:
        for criterion in args.criteria:
            told = {"method": f"torch-pruning:{criterion}", "target": target, "seed": seed}
            key = " ".join([told["method"], told["target"], f"seed {seed}"])
            if key not in done:
                folder.add({"key": key, **told, **row(path, subject, criterion, seed, common, original, args)})
                print(key, file=sys.stderr)
    return 0


def budget_of(args: argparse.Namespace) -> tuple[str, float]:
    """(one of COSTS, the share of it that remains)."""
    return ("macs", args.macs) if args.params is None else ("params", args.params)


def load(path: Path) -> cifar_resnet.ResNet | torch_modules.Modules:
    """The network of an ONNX file."""
    if "resnet" in path.name:
        return cifar_resnet.load(path)
    return torch_modules.Modules(torch_modules.widened(graph.normalize(graph.load(path))))


def check_equal(network: nn.Module, path: Path, samples: Samples) -> None:
    """Checks that torch and onnxruntime give the same logits. Raises: ArithmeticError otherwise."""
    feeds = samples.batch(np.arange(16))
    (wanted,) = sessions.run(sessions.open_session(path), feeds).values()
    with torch.no_grad():
        y = network(torch.from_numpy(next(iter(feeds.values())))).numpy()
    difference = float(np.abs(y - wanted).max())
    if difference > 1e-4 * np.abs(wanted).max():
        raise ArithmeticError(f"torch and onnxruntime differ by {difference:g} on {path}")


def row(
    path: Path, subject: Subject, criterion: str, seed: int, common: Any, original: Mapping, args: Any
) -> store.Row:
    """What Torch-Pruning and native training make of the network."""
    import torch_pruning

    torch.manual_seed(seed)
    start = perf_counter()
    network = load(path)
    tune, chosen = split(subject.tune, judged_share(len(subject.tune)), seed)
    cost_name, share = budget_of(args)
    uncounted = SHORTCUTS[cost_name] if isinstance(network, cifar_resnet.ResNet) else 0
    reached = prune(network, criterion, share, tune, [network.last()], uncounted, cost_name)
    pruned = perf_counter()
    before = measure(network, subject, original)
    begun = perf_counter()
    choice = asked.settings_of(replace(common, epochs=args.epochs or common.epochs, seed=seed))
    choice = replace(recovery.choose(tune, subject.model, args.device, choice), lr=args.lr)
    epoch = train(network.to(args.device), tune, chosen, choice)
    network.cpu()
    trained = perf_counter()
    after = measure(network, subject, original)
    told = f"{choice.epochs} epochs of {len(tune)} samples, batch {choice.batch_size}, lr {args.lr:g}, best {epoch}"
    if choice.flip or choice.crop:
        told += f", flip {choice.flip}, crop {choice.crop}"
    return {
        "tool": f"torch-pruning {torch_pruning.__version__}",
        **after,
        "cut": before["accuracy"]["value"],
        "notes": [f"native fine-tuning: {told}; Torch-Pruning counts {reached:.3f} of the budget"],
        "seconds": round(perf_counter() - start, 3),
        "steps": {"prune": round(pruned - start, 3), "finetune": round(trained - begun, 3)},
    }


def streams(network: nn.Module) -> list[nn.Module]:
    """The layers of a ResNet that write into what its shortcuts add to."""
    return [m for name, m in network.named_modules() if name == "conv1" or name.endswith((".conv2", ".shortcut"))]


def prune(
    network: nn.Module,
    criterion: str,
    share: float,
    samples: Samples,
    whole: list[nn.Module],
    uncounted: int = 0,
    cost_name: str = "macs",
) -> float:
    """Removes channels of all layers in one order until at most `share` of a cost remains; the share reached.

    whole: layers of which nothing is removed. uncounted: what the network costs that its file does not have. cost_name:
    of COSTS.
    """
    import torch_pruning as tp

    x, _ = tensors(samples, np.arange(1), network)
    importance = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[criterion]()
    before = tp.utils.count_ops_and_params(network, x)[COSTS.index(cost_name)] - uncounted
    pruner = tp.pruner.BasePruner(
        network,
        x,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=PRUNING_STEPS,
        ignored_layers=whole,
    )
    left = 1.0
    for step in range(PRUNING_STEPS):
        if left <= share:
            break
        if criterion == "taylor" and step % TAYLOR_EVERY == 0:
            gradients(network, samples)  # which Torch-Pruning cuts as it cuts the weights
        pruner.step()
        left = tp.utils.count_ops_and_params(network, x)[COSTS.index(cost_name)] / before
    network.zero_grad()
    return left


def gradients(network: nn.Module, samples: Samples, batch: int = 64) -> None:
    """Leaves the gradient of the loss on the first samples in the parameters."""
    network.zero_grad()
    for start in range(0, min(len(samples), TAYLOR_BATCHES * batch), batch):
        x, y = tensors(samples, np.arange(start, min(start + batch, len(samples))), network)
        F.cross_entropy(network(x), y).backward()


def tensors(samples: Samples, rows: np.ndarray, network: nn.Module) -> tuple[Tensor, Tensor]:
    """(x, labels) of some samples, where the network is."""
    assert samples.labels is not None
    device = next(network.parameters()).device
    x = torch.from_numpy(next(iter(samples.batch(rows).values())))
    return x.to(device), torch.from_numpy(samples.labels[rows]).to(device)


def train(network: nn.Module, tune: Samples, chosen: Samples, choice: recovery.Settings) -> int:
    """Trains on the labels and leaves the best epoch's weights in `network`; which one it was."""
    epochs, batch, lr = choice.epochs or 1, choice.batch_size or 64, choice.lr or 0.01
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = max(1, len(tune) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    generator = np.random.default_rng(choice.seed)
    if choice.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(network.parameters()).device
    best, weights, at = -1.0, copy.deepcopy(network.state_dict()), 0
    for epoch in range(1, epochs + 1):
        order = generator.permutation(len(tune))
        network.train()
        for step in range(steps):
            x, y = tensors(tune, order[step * batch : (step + 1) * batch], network)
            feeds, _ = augment({"x": x}, replace(choice, mixup=0.0), (epoch - 1) * steps + step)
            optimizer.zero_grad()
            with precision(choice, device):
                logits = network(feeds["x"])
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        if (value := accuracy(network, chosen)) > best:
            best, weights, at = value, copy.deepcopy(network.state_dict()), epoch
    network.load_state_dict(weights)
    return at


def accuracy(network: nn.Module, samples: Samples, batch: int = 250) -> float:
    """Share of right answers, in torch."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(samples), batch):
            x, y = tensors(samples, np.arange(start, min(start + batch, len(samples))), network)
            right += int((network(x).argmax(1) == y).sum())
    return right / len(samples)


def measure(network: nn.Module, subject: Subject, original: Mapping) -> store.Row:
    """The network as an ONNX file, measured as the results of onnxprune are."""
    assert subject.held is not None
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out.onnx")
        (x,), (y,) = (
            [value.name for value in values] for values in (subject.model.graph.inputs, subject.model.graph.outputs)
        )
        names, axes = {"input_names": [x], "output_names": [y]}, {name: {0: "batch"} for name in (x, y)}
        torch.onnx.export(
            network.eval(), (torch.zeros(2, 3, 32, 32),), str(out), dynamo=False, dynamic_axes=axes, **names
        )
        written = graph.normalize(graph.load(out))
        found = measure_file("pruned", out, cost.of(analyze(written)).totals())
        value = metrics.evaluate(sessions.open_session(out), subject.held)
        found = replace(found, accuracy=value)
        return loop.measured(found, written, original)


if __name__ == "__main__":
    sys.exit(main())
