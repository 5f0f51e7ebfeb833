"""The command line: parses, calls, prints results on stdout and everything else on stderr, and returns exit codes."""

import argparse
import json
import logging
import shlex
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from onnxprune import commands
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.options import LEVELS, TARGETS, Options

LOG = logging.getLogger("onnxprune")
EXIT_BAD_USAGE, EXIT_INTERRUPTED = 2, 130

EPILOG = """examples:
  onnxprune model.onnx small.onnx --method l1 --target macs=0.5
  onnxprune model.onnx small.onnx --data samples.npz --target latency=0.6 --max-drop 1 --report report.html

other commands:
  onnxprune inspect MODEL [--json] [--data SPEC]   what can be pruned, what not and why, cost by layer
  onnxprune normalize IN OUT                       the graph that plans refer to
  onnxprune apply IN PLAN OUT                      replay a plan
  onnxprune verify IN OUT --plan PLAN              cut = mask?  exit 0 or 3
  onnxprune bench MODEL... [--provider cpu,cuda]   latency of models against the first
  onnxprune compare-reports OLD.json NEW.json      what became worse beyond noise?  exit 0 or 1
  onnxprune sensitivity MODEL --data SPEC          accuracy against the fraction removed, dimension by dimension
  onnxprune calibrate [--provider cpu]             what multiple of channels this machine likes, for --align auto
  onnxprune methods | onnxprune ops                what there is

exit codes: 0 done; 1 a gate was missed; 2 bad usage or input; 3 verification failed; 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; '{self.prog} -h' shows the options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(a in ("-v", "--verbose") for a in given)
    try:
        return _dispatch(given)
    except KeyboardInterrupt:
        print("onnxprune: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OnnxPruneError as error:
        if verbose:
            traceback.print_exc()
        print(f"onnxprune: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, RecursionError) as error:
        print(
            f"onnxprune: {type(error).__name__}: the model or the batch is too large; lower --batch-size",
            file=sys.stderr,
        )
        return EXIT_BAD_USAGE
    except BrokenPipeError:
        return 0
    except Exception as error:  # a mistake of ours: still one line, and the way to tell us
        if verbose:
            traceback.print_exc()
        message = f"internal error: {type(error).__name__}: {_one_line(error)}; nothing was written. Run with -v and report it"
        print(f"onnxprune: {message}", file=sys.stderr)
        return EXIT_BAD_USAGE


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _dispatch(given: list[str]) -> int:
    # A file wins over a command of the same name.
    if given and given[0] in COMMANDS and not Path(given[0]).is_file():
        return COMMANDS[given[0]](given[1:])
    if given and given[0] == "--version":
        from onnxprune.plan import tool_version

        print(tool_version())
        return 0
    return _prune(given)


# prune ------------------------------------------------------------------------------------------------------------


def prune_parser() -> Parser:
    """The parser of the default command; -h fits a screen per group of options."""
    parser = Parser(
        prog="onnxprune",
        description="Prune an ONNX model into a smaller, faster ONNX model with the same interface, with the proof and the numbers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", metavar="IN.onnx", type=Path)
    parser.add_argument("output", metavar="OUT.onnx", type=Path)
    what = parser.add_argument_group("what to remove")
    what.add_argument("--method", help="see 'onnxprune methods' (default: snacs)")
    what.add_argument(
        "--target",
        action="append",
        metavar="KEY=FRACTION",
        help=f"what may remain, of {', '.join(TARGETS)}; repeatable, all must hold (default: snacs decides, else macs=0.5)",
    )
    what.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="search the smallest model that loses at most this"
    )
    what.add_argument("--min-speedup", type=float, metavar="X", help="fail unless the result is X times as fast")
    what.add_argument(
        "--align", type=_align, metavar="N", help="kept sizes are multiples of N, or auto (default: auto)"
    )
    what.add_argument(
        "--floor", type=float, metavar="SHARE", help="smallest share of a dimension that stays (default: 0.05)"
    )
    what.add_argument("--include", action="append", metavar="PATTERN", help="only these nodes or initializers (globs)")
    what.add_argument("--exclude", action="append", metavar="PATTERN", help="not these")
    what.add_argument("--exact-only", action="store_true", default=None, help="leave reduced dimensions alone")
    what.add_argument(
        "--option", action="append", metavar="KEY=VALUE", help="an option of the method, see docs/methods"
    )
    _data_arguments(parser)
    tuning = parser.add_argument_group("recovery")
    tuning.add_argument(
        "--recover", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: the best that the data allows)"
    )
    tuning.add_argument("--epochs", type=int, help="of fine-tuning (default: chosen by the size of the data)")
    tuning.add_argument("--lr", type=float, help="learning rate (default: chosen)")
    tuning.add_argument("--batch-size", type=int, help="(default: chosen)")
    tuning.add_argument("--device", choices=("auto", "cpu", "cuda"), help="for training (default: auto)")
    tuning.add_argument("--resume", type=Path, metavar="DIR", help="checkpoints live there; an interrupted run goes on")
    output = parser.add_argument_group("measuring and output")
    output.add_argument("--provider", help="cpu, cuda or tensorrt, for measuring (default: auto)")
    output.add_argument("--threads", type=int, help="for measuring (default: the physical cores)")
    output.add_argument(
        "--no-latency", dest="latency", action="store_false", default=None, help="do not measure latency"
    )
    output.add_argument("--plan", type=Path, metavar="FILE", help="write the plan")
    output.add_argument("--report", type=Path, action="append", metavar="FILE", help=".json, .md or .html; repeatable")
    output.add_argument("--config", type=Path, metavar="FILE.toml", help="any of these options; the command line wins")
    output.add_argument("--seed", type=int, help="of everything random (default: 0)")
    _verbosity(output)
    return parser


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("samples (SPEC: .npz, folder of images, module:function, digits)")
    data.add_argument("--data", metavar="SPEC", help="to score and tune on (default: none)")
    data.add_argument("--val", metavar="SPEC", help="to measure accuracy on (default: a held-out part of --data)")
    data.add_argument("--size", type=_numbers, help="images: shorter side, or height,width (default: the model's)")
    data.add_argument("--mean", type=_numbers, help="per channel, after scaling")
    data.add_argument("--std", type=_numbers, help="per channel, after scaling")
    data.add_argument("--scale", type=float, help="of pixels 0..255 (default: 1/255)")
    data.add_argument("--layout", choices=("nchw", "nhwc"), help="(default: the model's)")


def _verbosity(parser: Any) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", default=None, help="less")
    parser.add_argument("-v", "--verbose", action="store_true", default=None, help="more")


def _prune(given: list[str]) -> int:
    parser = prune_parser()
    if not given:
        parser.print_help(sys.stderr)
        return EXIT_BAD_USAGE
    namespace = parser.parse_args(given)
    settings = {**_config(namespace.config, parser), **{k: v for k, v in vars(namespace).items() if v is not None}}
    options = _options(settings, shlex.join(["onnxprune", *given]))
    _logging(settings)
    from onnxprune import pipeline

    result = pipeline.prune(namespace.input, namespace.output, options)
    _print_result(result, settings)
    return 0


def _options(settings: dict[str, Any], command: str) -> Options:
    known = {field.name for field in fields(Options)}
    values = {key: value for key, value in settings.items() if key in known}
    values["target"] = dict(_pair(text, float) for text in settings.get("target", ()))
    values["method_options"] = dict(_pair(text, _literal) for text in settings.get("option", ()))
    for name in ("include", "exclude", "report"):
        values[name] = tuple(settings.get(name, ()))
    values["preprocess"] = {k: settings[k] for k in ("size", "mean", "std", "scale", "layout") if k in settings}
    values["progress"] = sys.stderr.isatty() and not settings.get("quiet")
    return Options(**values, command=command)


def _config(path: Path | None, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options from a TOML file, in the form that the parser gives them. Raises: UsageError for unknown keys."""
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such configuration file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a TOML file ({error})") from error
    actions = {action.dest: action for action in parser._actions}
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = key.replace("-", "_")
        action = actions.get(name)
        if action is None or name in ("help", "config", "input", "output"):
            raise UsageError(f"{path}: unknown option '{key}'; 'onnxprune -h' lists them")
        found[name] = _configured(action, value, path, key)
    return found


def _configured(action: argparse.Action, value: Any, path: Path, key: str) -> Any:
    if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
        if not isinstance(value, bool):
            raise UsageError(f"{path}: option '{key}' is {value!r}, expected true or false")
        return value
    if isinstance(value, dict):  # target = {macs = 0.5}
        value = [f"{k}={v}" for k, v in value.items()]
    many = isinstance(action, argparse._AppendAction)
    items = value if isinstance(value, list) and (many or action.type is not _numbers) else [value]
    converted = []
    for item in items:
        text = ",".join(map(str, item)) if isinstance(item, list) else str(item)
        try:
            converted.append(action.type(text) if callable(action.type) else text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UsageError(f"{path}: option '{key}' is {item!r}, which does not fit ({error})") from error
    return converted if many else converted[0]


def _print_result(result: Any, settings: dict[str, Any]) -> None:
    from onnxprune.report import print_report

    print_report(result.report)
    proof = result.report.verify
    print(f"cut = mask within {proof.max_abs:.2g} of {proof.scale:.2g} on {proof.samples} samples")
    if not settings.get("quiet"):
        for note in result.report.notes:
            print(f"note: {note}", file=sys.stderr)


# Other commands -----------------------------------------------------------------------------------------------------


def _inspect(given: list[str]) -> int:
    parser = Parser(prog="onnxprune inspect", description="What can be pruned, what not and why, and cost by layer.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    _data_arguments(parser)
    _verbosity(parser)
    namespace = parser.parse_args(given)
    _logging(vars(namespace))
    from rich.console import Console

    from onnxprune import graph, inspection, pipeline

    model = graph.normalize(graph.load(namespace.model))
    preprocess = {k: v for k in ("size", "mean", "std", "scale", "layout") if (v := getattr(namespace, k)) is not None}
    tune, held = pipeline.load_data(model, Options(data=namespace.data, val=namespace.val, preprocess=preprocess))
    found = inspection.inspect(model, pipeline._sample_shapes(model, tune or held))
    if namespace.json:
        print(json.dumps(found, indent=1))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=160)
        inspection.print_table(found, console)
    return 0


def _normalize(given: list[str]) -> int:
    parser = Parser(prog="onnxprune normalize", description="Writes the graph that plans refer to; the same numbers.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    _verbosity(parser)
    namespace = parser.parse_args(given)
    _logging(vars(namespace))
    from onnxprune import graph, pipeline

    pipeline.check_paths(namespace.input, namespace.output, Options())
    graph.save(graph.normalize(graph.load(namespace.input)), namespace.output)
    return 0


def _apply(given: list[str]) -> int:
    parser = Parser(prog="onnxprune apply", description="Cuts another checkpoint of the same model by a saved plan.")
    parser.add_argument("input", type=Path)
    parser.add_argument("plan_file", metavar="PLAN.json", type=Path)
    parser.add_argument("output", type=Path)
    _data_arguments(parser)
    parser.add_argument("--recover", help="(default: none, or the best that --data allows)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--no-latency", dest="latency", action="store_false", default=None)
    parser.add_argument("--report", type=Path, action="append")
    parser.add_argument("--seed", type=int)
    _verbosity(parser)
    namespace = parser.parse_args(given)
    settings = {k: v for k, v in vars(namespace).items() if v is not None}
    if "data" not in settings:
        settings.setdefault("recover", "none")
    options = _options(settings, shlex.join(["onnxprune", "apply", *given]))
    _logging(settings)
    from onnxprune import pipeline

    _print_result(pipeline.replay(namespace.input, namespace.plan_file, namespace.output, options), settings)
    return 0


def _verify(given: list[str]) -> int:
    parser = Parser(prog="onnxprune verify", description="Checks that OUT equals IN masked by the plan; exit 0 or 3.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--seed", type=int)
    _data_arguments(parser)
    _verbosity(parser)
    namespace = parser.parse_args(given)
    settings = {k: v for k, v in vars(namespace).items() if v is not None}
    _logging(settings)
    from onnxprune import replaying

    found, what = replaying.check(
        namespace.input, namespace.output, namespace.plan, _options({**settings, "plan": None}, "")
    )
    print(f"{what}: largest difference {found.max_abs:.3g}, largest output {found.scale:.3g}, {found.samples} samples")
    return 0


def _bench(given: list[str]) -> int:
    parser = Parser(prog="onnxprune bench", description="Latency of models against the first, in interleaved runs.")
    parser.add_argument("models", nargs="+", metavar="MODEL", type=Path)
    parser.add_argument("--provider", default="cpu", help="cpu, cuda, tensorrt; several with commas (default: cpu)")
    parser.add_argument(
        "--batch", type=int, action="append", help="batch size; repeatable (default: 1, or the fixed one)"
    )
    parser.add_argument("--threads", type=int, action="append", help="repeatable (default: the physical cores)")
    parser.add_argument("--fp16", action="store_true", help="convert to half precision first")
    parser.add_argument("--cuda-graph", action="store_true", help="capture and replay a CUDA graph")
    parser.add_argument("--prefer-nhwc", action="store_true", help="let the CUDA provider use NHWC")
    parser.add_argument("--report", type=Path, action="append", metavar="FILE", help=".json, .md or .html; repeatable")
    _verbosity(parser)
    namespace = parser.parse_args(given)
    _logging(vars(namespace))
    from onnxprune.bench import run_bench
    from onnxprune.report import print_report

    found = run_bench(
        namespace.models,
        namespace.provider.split(","),
        namespace.batch,
        namespace.threads or (None,),
        namespace.report or (),
        command=shlex.join(["onnxprune", "bench", *given]),
        fp16=namespace.fp16,
        cuda_graph=namespace.cuda_graph,
        prefer_nhwc=namespace.prefer_nhwc,
    )
    print_report(found)
    return 0


def _methods(given: list[str]) -> int:
    Parser(prog="onnxprune methods", description="Methods and what they need.").parse_args(given)
    from onnxprune import methods
    from onnxprune.methods.base import METHODS

    methods.load_all()
    for name, method in sorted(METHODS.items()):
        needs = [f.name for f in fields(method.needs) if getattr(method.needs, f.name)] or ["weights"]
        print(f"{name:10s} needs {', '.join(needs):28s} {method.summary}")
    return 0


def _ops(given: list[str]) -> int:
    Parser(prog="onnxprune ops", description="Operators that coupling, torch and cost know.").parse_args(given)
    from onnxprune import cost
    from onnxprune.bridge.ops import registry
    from onnxprune.coupling.registry import RULES

    torch_ops = {key[:2] for key in registry.load_all()}
    known = sorted(set(RULES) | torch_ops)
    print(f"{'operator':44s} couple torch cost")
    for domain, op_type in known:
        marks = [(domain, op_type) in RULES, (domain, op_type) in torch_ops, op_type in cost.MACS]
        print(
            f"{(domain + '.' if domain else '') + op_type:44s} "
            + "  ".join("yes " if mark else "-   " for mark in marks)
        )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "inspect": _inspect,
    "normalize": _normalize,
    "apply": _apply,
    "verify": _verify,
    "bench": _bench,
    "methods": _methods,
    "ops": _ops,
    **commands.COMMANDS,
}


# Small conversions ------------------------------------------------------------------------------------------------


def _logging(settings: dict[str, Any]) -> None:
    level = logging.WARNING if settings.get("quiet") else logging.DEBUG if settings.get("verbose") else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level)
    LOG.propagate = False


def _align(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _numbers(text: str) -> Any:
    values = [float(part) for part in text.split(",")]
    if all(value.is_integer() for value in values):
        values = [int(value) for value in values]
    return values[0] if len(values) == 1 else tuple(values)


def _pair(text: str, convert: Callable[[str], Any]) -> tuple[str, Any]:
    key, equals, value = str(text).partition("=")
    if not equals:
        raise UsageError(f"'{text}': expected KEY=VALUE, such as macs=0.5")
    try:
        return key.strip(), convert(value)
    except ValueError as error:
        raise UsageError(f"'{text}': '{value}' is not a number; expected KEY=VALUE, such as macs=0.5") from error


def _literal(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
