"""`onnxprune check`: whether plan files can be replayed, before anything is cut by them; exit code 0 or 2."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.system import streams
from onnxprune.system.words import counted

if TYPE_CHECKING:
    from onnxprune.plan import Plan
    from onnxprune.run.subject import Subject


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune check",
        description="Reads plan files as strictly as 'apply' does: are they whole, do their parts agree and, with\n"
        "--model, do they belong to this model? Nothing is cut and nothing is written.",
        epilog="examples:\n  onnxprune check plan.json\n  onnxprune check plans/*.json --model model.onnx",
    )
    made.add_argument("plans", nargs="+", metavar="PLAN.json", type=Path)
    made.add_argument(
        "--model", type=Path, metavar="MODEL.onnx", help="the model that the plans are to cut (default: none is read)"
    )
    cli.verbosity(made)
    return made


def run(arguments: list[str]) -> int:
    """Prints one line per plan that is good. Raises: UsageError that names every plan that is not."""
    settings = cli.settings_of(parser(), arguments)
    prepared = functools.cache(functools.partial(_subject, settings["model"])) if "model" in settings else None
    wrong = []
    for path in settings["plans"]:
        try:
            streams.say(f"{path}: {told(path, prepared)}")
        except UsageError as error:
            wrong.append(str(error) if str(error).startswith(str(path)) else f"{path}: {error}")
    if wrong:
        many = f"{len(wrong)} of {len(settings['plans'])} plans are not good: " if len(wrong) > 1 else ""
        raise UsageError(many + " | ".join(wrong))
    return 0


def _subject(path: Path, tokens: tuple[int, ...]) -> "Subject":
    """The model as a plan that keeps these `tokens` of its vocabulary sees it, none: the whole."""
    from onnxprune.options import Options
    from onnxprune.run import subject
    from onnxprune.system.clock import Clock

    return subject.prepare(path, Options(), Clock(), tokens)


def told(path: Path, prepared: "Callable[[tuple[int, ...]], Subject] | None") -> str:
    """A line on a plan that can be replayed; `prepared` gives the model by the tokens that a plan keeps.

    Raises: UsageError for a plan that cannot be replayed.
    """
    from onnxprune.plan import plan
    from onnxprune.run import depth

    loaded = plan.load(path)
    parts = [f"valid, {_size(loaded)} by {loaded.method}"]
    if prepared is None:
        return ", ".join([*parts, f"for {loaded.model_name or 'a model without a name'}"])
    subject = depth.again(prepared(loaded.tokens), loaded)
    plan.selection_of(loaded, subject.coupling)
    same = loaded.model_sha256 == subject.sha256
    return ", ".join([*parts, f"belongs to {subject.path.name}{'' if same else ', which has other weights by now'}"])


def _size(loaded: "Plan") -> str:
    """'2 dimensions lose 9 of 20 units'."""
    count, lost = len(loaded.dims), sum(dim.size - len(dim.keep) for dim in loaded.dims)
    of = sum(dim.size for dim in loaded.dims)
    return f"{counted(count, 'dimension')} lose{'s' if count == 1 else ''} {lost} of {of} units"
