"""Exports small members of many families outside of torchvision and timm, by either of torch's exporters.

The tables are families_hf.py (transformers), families_libraries.py (ultralytics, segmentation_models_pytorch,
diffusers), families_handmade.py and families_odd.py. Each export runs in a copy of this process with a time limit.
OUT_DIR gets NAME.VARIANT.onnx and exports.json, as export.py writes it; a second call goes on where the first stopped.
Variants: ts and dynamo with everything static, dyn and dyn_dynamo with the inputs' symbolic axes.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import logging
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

from jobs import Row, baked_in, exported, last_json, load_rows, note, note_export, run_forked, statuses

SYMBOLIC = ("dyn", "dyn_dynamo")
VARIANTS = ("ts", "dynamo", *SYMBOLIC)
TABLES = ("families_handmade", "families_odd", "families_libraries", "families_hf")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT_DIR", help="folder for the files and exports.json")
    parser.add_argument("--names", nargs="+", default=["*"], metavar="GLOB", help="networks to export (default: all)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds for one export (default 120)")
    parser.add_argument("--again", action="store_true", help="repeat what failed before")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    args = parser.parse_args(argv)
    if args.out is None and not args.list:
        parser.error("OUT_DIR is missing")
    return args


def catalog():
    """All networks by name; a table whose library is not there is left out."""
    found = {}
    for table in TABLES:
        try:
            found |= {family.name: family for family in importlib.import_module(table).families()}
        except ImportError as error:
            note(f"{table}: left out ({error})")
    return found


def export_one(args: argparse.Namespace, name: str, variant: str, attention: str) -> Row:
    """One network built, randomized, exported and checked: its row. Raises what torch raises."""
    import torch
    from families_base import OTHER_SIZES, SIZES
    from weights import trouble

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    family = catalog()[name]
    with torch.no_grad():
        network = family.random(attention)
        row: Row = {
            "params": sum(p.numel() for p in network.parameters()),
            "trouble": trouble(network, family.feeds(seed=10), family.feeds(seed=20)),
        }
        feeds, path = family.feeds(seed=30), args.out / f"{name}.{variant}.onnx"
        temporary, start = path.with_suffix(".part"), time.perf_counter()
        write(network, family, feeds, temporary, variant)
        row["seconds"] = time.perf_counter() - start
        row["difference"] = difference(network, family, feeds, temporary)
        if variant in SYMBOLIC:
            feeds = family.feeds({**SIZES, **OTHER_SIZES}, seed=40)
            row["message"] = baked_in(partial(difference, network, family, feeds, temporary))
    if row["difference"] > 1e-3:
        raise ValueError(f"onnxruntime and torch differ by {row['difference']:.2g} of the output's scale")
    temporary.replace(path)
    return {**row, "status": "exported", "file": path.name, "bytes": path.stat().st_size, "attention": attention}


def write(network, family, feeds, path: Path, variant: str) -> None:
    """torch.onnx.export with the variant's options, all in one file."""
    import torch

    axes = [x.axes for x in family.inputs.values()] if variant in SYMBOLIC else None
    if variant in ("ts", "dyn"):
        named = {name: a for name, a in zip(family.input_names, axes, strict=True) if a} if axes else None
        torch.onnx.export(
            network, feeds, str(path), dynamo=False, opset_version=17, input_names=family.input_names,
            dynamic_axes=named,
        )  # fmt: skip
    else:
        shapes = (tuple(dict.fromkeys(a, torch.export.Dim.DYNAMIC) for a in axes),) if axes else None
        torch.onnx.export(
            network, feeds, str(path), dynamo=True, opset_version=20, external_data=False, verbose=False,
            input_names=family.input_names, dynamic_shapes=shapes,
        )  # fmt: skip


def difference(network, family, feeds, path: Path) -> float:
    """max|onnxruntime - torch| over max|torch|, the largest of the outputs that are floats."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {x.name for x in session.get_inputs()}
    given = session.run(None, {n: x.numpy() for n, x in zip(family.input_names, feeds, strict=True) if n in wanted})
    pairs = [(g, t.numpy()) for g, t in zip(given, network(*feeds), strict=True) if t.is_floating_point()]
    return max((float(abs(g - t).max() / abs(t).max()) for g, t in pairs if t.size), default=0.0)


def child(args: argparse.Namespace, name: str, variant: str) -> Row:
    """One export in a process of its own; its row, whatever happened."""
    row: Row | None = None
    for attention in ("", "eager") if name.startswith("hf_") else ("",):
        job = run_forked(partial(export_one, args, name, variant, attention), args.timeout)
        row = last_json(job.stdout) if job.code == 0 else None
        if row:
            break
    return exported(args.out, name, variant, row, job)


def main(argv: list[str] | None = None) -> int:
    """0, also where exports failed: a failure is a row of the table."""
    args = parse(argv)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    import stub

    stub.install()
    known = catalog()
    names = list(dict.fromkeys(name for glob in args.names for name in fnmatch.filter(known, glob)))
    if args.list:
        print("\n".join(names))
        return 0
    for library in ("transformers", "onnxruntime", "onnxscript", "torch.onnx", "torchvision"):
        with contextlib.suppress(ImportError):  # tables of what is not there are left out
            importlib.import_module(library)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "exports.json"
    rows = load_rows(table)
    for variant in args.variants:
        for name in names:
            before = rows.get(f"{name}.{variant}")
            if before and not (args.again and before["status"] != "exported"):
                continue
            note_export(table, rows, child(args, name, variant))
    print(statuses(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
