"""Exports the zoo: torchvision, timm and a few handmade networks to ONNX, with either of torch's exporters.

Each export runs in a copy of this process with a time limit, one after the other. OUT_DIR gets NAME.VARIANT.onnx and
exports.json, a table of what became of each; a second call goes on where the first stopped.

Variants: ts (TorchScript-based exporter), dynamo, bn (TorchScript, BatchNorm nodes kept), dyn (TorchScript, symbolic
batch and sequence), dyn_dynamo (the same by dynamo), dynhw (TorchScript, symbolic batch, height and width).
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from jobs import Row, baked_in, exported, last_json, load_rows, note_export, run_forked, statuses

TORCHSCRIPT = ("ts", "bn", "dyn", "dynhw")
VARIANTS = (*TORCHSCRIPT, "dynamo", "dyn_dynamo")
DYNAMIC_SIZE = ("unet", "fcn_", "deeplab", "lraspp", "_backbone", "resnet18", "mobilenetv2_035", "squeezenet1_1")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="OUT_DIR", help="folder for the .onnx files and exports.json"
    )
    parser.add_argument(
        "--names", nargs="+", default=["*"], metavar="GLOB", help="networks to export, in this order (default: all)"
    )
    parser.add_argument("--exporter", choices=("ts", "dynamo", "both"), default="both", help="default: both")
    parser.add_argument("--bn", action="store_true", help="also NAME.bn.onnx with BatchNorm nodes kept")
    parser.add_argument("--dynamic", action="store_true", help="also variants with symbolic sizes")
    parser.add_argument(
        "--only-extra", action="store_true", help="not the plain variants, only what --bn and --dynamic add"
    )
    parser.add_argument("--opset-ts", type=int, default=17, help="opset of the TorchScript-based exporter (default 17)")
    parser.add_argument(
        "--opset-dynamo", type=int, default=20, help="opset of the dynamo exporter, 18 or more (default 20)"
    )
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds for one export (default 300)")
    parser.add_argument(
        "--max-params", type=float, default=160, metavar="M", help="leave out larger networks (million; default 160)"
    )
    parser.add_argument("--again", action="store_true", help="repeat what failed before")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    parser.add_argument(
        "--exportable", action="store_true", help="timm's exportable layers at once, not after a failure"
    )
    args = parser.parse_args(argv)
    if args.out is None and not args.list:
        parser.error("OUT_DIR is missing")
    return args


def wanted(args: argparse.Namespace, name: str) -> list[str]:
    """The variants of one network that the options ask for."""
    exporters = ("ts", "dynamo") if args.exporter == "both" else (args.exporter,)
    variants: list[str] = [] if args.only_extra else list(exporters)
    if "ts" in exporters:
        variants += ["bn"] * args.bn + ["dyn"] * args.dynamic
        variants += ["dynhw"] * (args.dynamic and any(part in name for part in DYNAMIC_SIZE))
    if "dynamo" in exporters:
        variants += ["dyn_dynamo"] * args.dynamic
    return variants


def symbolic_axes(variant: str, rank: int) -> dict[int, str]:
    """Which axes of an input of this rank get names."""
    if variant == "dynhw":
        return {0: "batch", rank - 2: "height", rank - 1: "width"}
    if variant.startswith("dyn_") or variant == "dyn":
        return {0: "batch", 1: "time"} if rank == 2 else {0: "batch"}
    return {}


def export_one(args: argparse.Namespace, name: str, variant: str, exportable: bool) -> Row:
    """One network built, randomized, exported and checked: its row, exported or skipped. Raises what torch raises."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch
    from networks import catalog
    from weights import has_norms, trouble

    torch.set_num_threads(1)
    if exportable:
        from timm.layers.config import set_exportable, set_fused_attn  # pyright: ignore[reportMissingImports]

        set_exportable(True)
        set_fused_attn(False)  # written out: the fused form takes a bool that tracing makes a tensor
    network = catalog()[name]
    module = network.random(seed=0)
    params = sum(p.numel() for p in module.parameters())
    if params > args.max_params * 1e6:
        return {
            "status": "skipped",
            "params": params,
            "message": f"{params / 1e6:.0f} M parameters > {args.max_params:.0f} M",
        }
    if variant == "bn" and not has_norms(module):
        return {"status": "skipped", "params": params, "message": "no BatchNorm"}
    row: Row = {"params": params, "trouble": trouble(module, network.inputs(2, seed=1), network.inputs(2, seed=2))}
    path = args.out / f"{name}.{variant}.onnx"
    temporary = path.with_suffix(".part")
    x = network.inputs(2 if variant == "dyn_dynamo" else 1, seed=3)[0]  # torch.export takes a size of 1 for a constant
    start = time.perf_counter()
    with torch.no_grad():
        write(module, x, temporary, variant, args.opset_ts if variant in TORCHSCRIPT else args.opset_dynamo)
        row["seconds"] = time.perf_counter() - start
        row["difference"] = difference(module, x, temporary)
        if symbolic_axes(variant, x.dim()):
            row["message"] = baked_in(partial(difference, module, network.inputs(3, seed=4)[0], temporary))
    if row["difference"] > 1e-3:
        raise ValueError(f"onnxruntime and torch differ by {row['difference']:.2g} of the output's scale")
    temporary.replace(path)
    return {**row, "status": "exported", "file": path.name, "bytes": path.stat().st_size}


def write(module, x, path: Path, variant: str, opset: int) -> None:
    """torch.onnx.export with the variant's options, all in one file."""
    import torch

    axes = symbolic_axes(variant, x.dim())
    if variant in TORCHSCRIPT:
        mode = torch.onnx.TrainingMode.PRESERVE if variant == "bn" else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            module, (x,), str(path), dynamo=False, opset_version=opset, training=mode,
            input_names=["x"], dynamic_axes={"x": axes} if axes else None,
        )  # fmt: skip
    else:
        torch.onnx.export(
            module, (x,), str(path), dynamo=True, opset_version=opset, external_data=False, verbose=False,
            input_names=["x"], dynamic_shapes=(axes,) if axes else None,
        )  # fmt: skip


def difference(module, x, path: Path) -> float:
    """max|onnxruntime - torch| over max|torch|, the largest of the outputs that are floats."""
    import onnxruntime as ort
    from weights import tensors

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    pairs = [(g, t.numpy()) for g, t in zip(given, tensors(module(x)), strict=True) if t.is_floating_point()]
    return max((float(abs(g - t).max() / abs(t).max()) for g, t in pairs if t.size), default=0.0)


def child(args: argparse.Namespace, name: str, variant: str) -> Row:
    """One export in a process of its own; its row, whatever happened."""
    job = run_forked(partial(export_one, args, name, variant, args.exportable), args.timeout)
    row = last_json(job.stdout) if job.code == 0 else None
    if row is None and not job.timed_out and not name.startswith("tv_") and not args.exportable:
        # Attention by scaled_dot_product_attention does not always trace; timm has a plain form for exports.
        job = run_forked(partial(export_one, args, name, variant, True), args.timeout)
        row = last_json(job.stdout) if job.code == 0 else None
        row = {**row, "exportable": True} if row else None
    return exported(args.out, name, variant, row, job)


def export_all(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Row]:
    """Exports everything that is not in the table yet; the whole table."""
    table = args.out / "exports.json"
    rows = load_rows(table)
    for name in names:
        for variant in wanted(args, name):
            before = rows.get(f"{name}.{variant}")
            if before and not repeated(before, args):
                continue
            note_export(table, rows, child(args, name, variant))
    return rows


def repeated(before: Row, args: argparse.Namespace) -> bool:
    """Whether an export that is in the table is done again: what failed, if asked, and what is no longer too large."""
    if before["status"] == "skipped":
        return "parameters" in before["message"] and before["params"] <= args.max_params * 1e6
    return args.again and before["status"] != "exported"


def main(argv: list[str] | None = None) -> int:
    """0, also where exports failed: a failure is a row of the table."""
    args = parse(argv)
    from networks import catalog

    names = list(dict.fromkeys(name for glob in args.names for name in fnmatch.filter(catalog(), glob)))
    if args.list:
        print("\n".join(names))
        return 0
    for library in ("timm", "timm.models", "onnxruntime", "onnxscript", "torch.onnx"):
        importlib.import_module(library)  # once, instead of in each copy of this process
    args.out.mkdir(parents=True, exist_ok=True)
    rows = export_all(args, names)
    print(statuses(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
