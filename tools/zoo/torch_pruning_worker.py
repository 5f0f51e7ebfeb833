"""Prunes one network of the zoo with Torch-Pruning at a ratio of 0.5 and prints what came of it as JSON.

    python torch_pruning_worker.py NAME random|l1

Torch-Pruning gets the help that its own examples give: the layers that make the outputs are ignored, a fused qkv layer
is given its number of heads, and the attention modules are told their new sizes afterwards. A network counts as pruned
if it has fewer parameters and still gives finite outputs of the old shapes, at two batch sizes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from typing import Any

import stub
import torch
from networks import catalog
from torch import Tensor, nn
from weights import tensors

PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)


def output_layers(network: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers whose result is an output as it stands, and the layer that runs last."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, _: object, y: Any) -> None:
        seen.append((module, y))

    hooks = [module.register_forward_hook(record) for module in network.modules() if isinstance(module, PRUNABLE)]
    with torch.no_grad():
        ends = {y.untyped_storage().data_ptr() for y in tensors(network(x))}
    for hook in hooks:
        hook.remove()
    found = [module for module, y in seen if y.untyped_storage().data_ptr() in ends]
    return list(dict.fromkeys([*found, *(module for module, _ in seen[-1:])]))


def fused_attention(network: nn.Module) -> list[Any]:
    """Modules with a qkv layer and a number of heads."""
    return [
        module
        for module in network.modules()
        if isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "num_heads", None), int)
    ]


def tell_sizes(module: Any, heads: int) -> None:
    """Writes the sizes after pruning where timm's attention modules keep them."""
    width = module.qkv.out_features // 3
    module.num_heads = heads
    for name, value in (("head_dim", width // heads), ("attn_dim", width)):
        if hasattr(module, name):
            setattr(module, name, value)


def shapes(network: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Shapes of the outputs. Raises ArithmeticError if one is not finite."""
    with torch.no_grad():
        outputs = tensors(network(x))
    if not all(torch.isfinite(y).all() for y in outputs):
        raise ArithmeticError("an output is not finite")
    return [tuple(y.shape) for y in outputs]


def preload() -> None:
    """The imports of an attempt; from here on torch has one thread."""
    torch.set_num_threads(1)
    stub.install()
    import timm  # noqa: F401
    import torch_pruning  # noqa: F401


def main(name: str, importance: str) -> dict[str, Any]:
    """Parameters kept and seconds. Raises whatever Torch-Pruning or the pruned network raise."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    preload()
    import torch_pruning as tp

    network = catalog()[name]
    module = network.random(seed=0)
    x, two = network.inputs(1, seed=1)[0], network.inputs(2, seed=2)[0]
    before, wanted = sum(p.numel() for p in module.parameters()), [shapes(module, x), shapes(module, two)]
    ignored, attention = output_layers(module, x), fused_attention(module)
    scores = tp.importance.RandomImportance() if importance == "random" else tp.importance.MagnitudeImportance(p=1)
    start, cpu = time.perf_counter(), time.process_time()
    heads = {m.qkv: m.num_heads for m in attention}
    pruner = tp.pruner.BasePruner(
        module, x, importance=scores, pruning_ratio=0.5, ignored_layers=ignored, num_heads=heads
    )
    built = time.perf_counter()
    pruner.step()
    done, cpu = time.perf_counter(), time.process_time() - cpu
    for m in attention:
        tell_sizes(m, pruner.num_heads[m.qkv])
    after = sum(p.numel() for p in module.parameters())
    if [shapes(module, x), shapes(module, two)] != wanted:
        raise ArithmeticError("the outputs have other shapes")
    if after >= before:
        raise ArithmeticError("nothing was removed")
    return {
        "ok": True,
        "kept_params": after / before,
        "build_s": built - start,
        "prune_s": done - built,
        "work_s": done - start,
        "work_cpu_s": cpu,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__)
        sys.exit(0 if "-h" in sys.argv or "--help" in sys.argv else 2)
    print(json.dumps(main(*sys.argv[1:])), flush=True)
    os._exit(0)
