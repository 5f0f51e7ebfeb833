"""`python -m onnxprune` and the console script."""

import sys

from onnxprune.cli import main as run


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
