"""Commands besides pruning, one module each with `run(arguments) -> exit code`; each is loaded when it is called."""

from collections.abc import Callable
from importlib import import_module

MODULES = {
    "compare": "compare",
    "sensitivity": "sensitivity",
    "calibrate": "calibrate",
    "card": "card",
    "check": "check",
    "compare-reports": "compare_reports",
}


def _runner(module: str) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        return import_module(f"onnxprune.cli.{module}").run(arguments)

    return run


COMMANDS = {name: _runner(module) for name, module in MODULES.items()}
