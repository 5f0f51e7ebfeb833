"""Every method on a CIFAR-10 network of the data folder, Torch-Pruning beside them: `onnxprune compare` with defaults.

    python tools/compare.py --model cifar10-resnet56-bn --out compared/
    python tools/compare.py --model cifar10-resnet56-bn --out compared/ --torch-pruning
    python tools/compare.py --out compared/ --methods snacs,paam --targets macs=0.5 macs=0.75 --seeds 0,1,2 --epochs 4

Options that are not listed below go to `onnxprune compare` as they are and win over these defaults. The same command
goes on where it was interrupted. --torch-pruning adds one row for each of its criteria, see torch_pruning_cifar.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tools import cifar  # noqa: E402

METHODS = "l1,fpgm,taylor,snacs,paam,gss,aswl:density=0.5,cci:kept=8"
DEFAULTS = {"--methods": METHODS, "--targets": "macs=0.5", "--recover": "finetune", "--epochs": "2"}


def command(model: str, train: str, test: str, out: Path, rest: list[str]) -> list[str]:
    """The words of `onnxprune compare`."""
    prefix = "vgg_" if "vgg" in model else ""
    data = {"--data": f"tools.cifar:{prefix}{train}", "--val": f"tools.cifar:{prefix}{test}"}
    words = ["compare", str(cifar.DATA / "models" / f"{model}.onnx"), "--out", str(out)]
    for option, value in {**data, **DEFAULTS}.items():
        if option not in rest:
            words += [option, value]
    return words + rest


def main(argv: list[str] | None = None) -> int:
    """The exit code of `onnxprune compare`, or of the rival."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="cifar10-resnet56-bn", help="a model of $ONNXPRUNE_DATA/models")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, table and plot")
    parser.add_argument("--train", default="train5000", help="images to tune on, a function of cifar.py")
    parser.add_argument("--test", default="test", help="images to measure on, a function of cifar.py")
    parser.add_argument(
        "--torch-pruning", action="store_true", help="add rows of Torch-Pruning (ResNets with BatchNorm)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch-pruning")
    args, rest = parser.parse_known_args(argv)
    from onnxprune.cli import main as onnxprune

    words = command(args.model, args.train, args.test, args.out, rest)
    code = onnxprune(words)
    if code or not args.torch_pruning:
        return code
    rival = [args.python, str(HERE / "torch_pruning_cifar.py"), str(args.out), "--model", args.model]
    code = subprocess.run(rival).returncode
    return code or onnxprune(words)  # everything is done: it writes the table with the new rows


if __name__ == "__main__":
    sys.exit(main())
