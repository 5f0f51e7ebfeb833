"""The commands; the modules that do the work are imported when a command needs them."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from onnxprune.cli import config
from onnxprune.cli.parser import (
    Parser,
    add,
    data_arguments,
    in_group,
    json_argument,
    options_of,
    prune_parser,
    set_logging,
    settings_of,
    verbosity,
)
from onnxprune.options import LEVELS, RECOVERY, Options
from onnxprune.system import processes, streams
from onnxprune.system.words import counted


def prune(given: list[str]) -> int:
    """The default command."""
    parser = prune_parser()
    if not given:
        parser.error("a model and the path of the result are required")
    settings = settings_of(parser, given)
    if "config" in settings:
        settings = {**config.read(settings["config"]), **settings}
        set_logging(settings)
    options = options_of(settings, shlex.join(["onnxprune", *given]))
    from onnxprune.run import checks, pipeline

    if "config" in settings:
        checks.check_writes(checks.written(settings["out"], options), [settings["config"]])
    _print_result(pipeline.prune(settings["source"], settings["out"], options), settings)
    return 0


def _print_result(result: Any, settings: Mapping[str, Any]) -> None:
    from onnxprune.report import as_json, print_report, verdict

    if processes.launched()[0] > 0:  # the first process prints
        return
    proof = result.report.verify
    told = (
        "proof: the result differs from its full-size twin with the removed parts set to zero by at most "
        f"{proof.max_abs:.2g}, where outputs reach {proof.scale:.2g} "
        f"(cut = mask, {counted(proof.samples, 'sample')}{_told(proof)})"
    )
    lines = [told, *([result.report.quantize["proof"]] if result.report.quantize is not None else [])]
    try:
        if settings.get("json"):
            streams.say(as_json(result.report).rstrip("\n"))
        else:
            with streams.printing() as stream:
                print_report(result.report, stream)
                print(*lines, verdict(result.report), sep="\n", file=stream)
    except streams.PrintError as error:  # the work is done all the same
        print(f"warning: {result.after.path} was written, but {error}", file=sys.stderr)
    if not settings.get("quiet"):
        for note in result.report.notes:
            print(f"note: {note}", file=sys.stderr)


def _told(proof: Any) -> str:
    """The remarks of a proof, printed behind its numbers."""
    return f"; {proof.note}" if proof.note else ""


def _inspect(given: list[str]) -> int:
    parser = Parser(
        prog="onnxprune inspect",
        description="What can be pruned, what not and why, and cost by layer.",
        epilog="examples:\n  onnxprune inspect model.onnx\n  onnxprune inspect model.onnx --json > dims.json",
    )
    parser.add_argument("model", metavar="MODEL.onnx", type=Path)
    parser.add_argument("--json", action="store_true", help="everything, as JSON (default: a table)")
    add(parser, "report", help=".html or .svg: widths, as a picture")
    data_arguments(parser)
    verbosity(parser)
    settings = settings_of(parser, given)
    options = options_of(settings, "")
    from rich.console import Console

    from onnxprune.report import widths
    from onnxprune.run import checks
    from onnxprune.studies import inspection

    targets = [widths.check_path(path) for path in settings.get("report", ())]
    checks.check_writes(targets, checks.read(settings["model"], options))
    found = inspection.inspect_file(settings["model"], options)
    for path in targets:
        widths.write_widths(found, settings["model"], path)
    if settings["json"]:
        streams.say(json.dumps(found, indent=1))
        return 0
    with streams.printing() as stream:
        inspection.print_table(found, Console(file=stream, width=None if stream.isatty() else 160))
    return 0


def _normalize(given: list[str]) -> int:
    parser = Parser(
        prog="onnxprune normalize",
        description="Writes the graph that plans refer to; it computes the same numbers.",
        epilog="examples:\n  onnxprune normalize model.onnx normal.onnx\n  onnxprune normalize model.onnx n.onnx -v",
    )
    parser.add_argument("input", metavar="IN.onnx", type=Path)
    parser.add_argument("output", metavar="OUT.onnx", type=Path)
    verbosity(parser)
    settings = settings_of(parser, given)
    from onnxprune import graph
    from onnxprune.proof import normal_form
    from onnxprune.run import checks

    checks.check_paths(settings["input"], settings["output"], Options())
    graph.save(normal_form.form_of(graph.load(settings["input"])), settings["output"])
    return 0


def _apply(given: list[str]) -> int:
    parser = Parser(
        prog="onnxprune apply",
        description="Cuts this or another checkpoint of a model by a saved plan.",
        epilog="examples:\n  onnxprune apply model.onnx plan.json small.onnx\n"
        "  onnxprune apply retrained.onnx plan.json small.onnx --data samples.npz --report report.md",
    )
    parser.add_argument("input", metavar="IN.onnx", type=Path)
    parser.add_argument("plan_file", metavar="PLAN.json", type=Path)
    parser.add_argument("output", metavar="OUT.onnx", type=Path)
    data_arguments(parser)
    recovery = parser.add_argument_group("recovery")
    add(recovery, "recover", help=f"{', '.join(LEVELS)} (default: the plan's, as far as --data allows)")
    add(recovery, *(name for name in in_group(RECOVERY) if name != "recover"))
    add(parser, "latency", "pack", "report", "seed")
    add(parser, "plan", help="write the plan of this result, by which it can be verified")
    add(parser, "quantize", help="as of pruning (default: the plan's; none leaves the result in floats)")
    json_argument(parser)
    verbosity(parser)
    settings = settings_of(parser, given)
    options = options_of(settings, shlex.join(["onnxprune", "apply", *given]))
    from onnxprune.run import pipeline

    result = pipeline.replay(settings["input"], settings["plan_file"], settings["output"], options)
    _print_result(result, settings)
    return 0


def _verify(given: list[str]) -> int:
    parser = Parser(
        prog="onnxprune verify",
        description="Checks that OUT equals IN masked by the plan: exit code 0, or 3 where it does not.",
        epilog="examples:\n  onnxprune verify model.onnx small.onnx --plan plan.json\n"
        "  onnxprune verify model.onnx small.onnx --plan plan.json --data samples.npz",
    )
    parser.add_argument("input", metavar="IN.onnx", type=Path)
    parser.add_argument("output", metavar="OUT.onnx", type=Path)
    parser.add_argument("--plan", dest="plan_file", metavar="PLAN.json", type=Path, required=True)
    add(parser, "seed", help="of the random inputs (default: 0)")
    parser.add_argument("--any-weights", action="store_true", help="OUT was tuned further after it was written")
    data_arguments(parser)
    json_argument(parser)
    verbosity(parser)
    settings = settings_of(parser, given)
    options = options_of(settings, "")
    from onnxprune.run import replay

    files = (settings["input"], settings["output"], settings["plan_file"])
    found, what = replay.check(*files, options, any_weights=settings["any_weights"])
    numbers = (
        f"largest difference {found.max_abs:.3g}, largest output {found.scale:.3g}, {counted(found.samples, 'sample')}"
    )
    if settings["json"]:
        held = {"what": what, "max_abs": found.max_abs, "scale": found.scale, "samples": found.samples}
        streams.say(json.dumps({"format": "onnxprune-verify/1", "ok": True, **held, "note": found.note}, indent=1))
    else:
        streams.say(f"{what}: {numbers}{_told(found)}")
    return 0


def _bench(given: list[str]) -> int:
    parser = Parser(
        prog="onnxprune bench",
        description="Latency of models against the first, in interleaved runs.",
        epilog="examples:\n  onnxprune bench model.onnx small.onnx --threads 1 --threads 4\n"
        "  onnxprune bench model.onnx small.onnx --provider cpu,cuda --batch 1 --batch 32 --report bench.json",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx", type=Path)
    parser.add_argument("--provider", metavar="NAME", help="cpu, cuda, tensorrt; several with commas (default: cpu)")
    parser.add_argument("--batch", type=int, action="append", metavar="N", help="repeatable (default: 1, or the fixed)")
    parser.add_argument("--threads", type=int, action="append", metavar="N", help="repeatable (default: the cores)")
    parser.add_argument("--fp16", action="store_true", help="convert to half precision first (default: off)")
    parser.add_argument("--cuda-graph", action="store_true", help="capture and replay a CUDA graph (default: off)")
    parser.add_argument("--prefer-nhwc", action="store_true", help="let the CUDA provider use NHWC (default: off)")
    parser.add_argument("--sparsity", action="store_true", help="let TensorRT use 2:4 zeros (default: off)")
    parser.add_argument("--report", type=Path, action="append", metavar="FILE", help=".json, .md or .html; repeatable")
    parser.add_argument("--export-json", type=Path, metavar="FILE", help="times as 'hyperfine --export-json' has them")
    json_argument(parser)
    verbosity(parser)
    settings = settings_of(parser, given)
    from onnxprune.report import as_json, check_report_path, hyperfine, print_report
    from onnxprune.run import checks
    from onnxprune.studies.bench import run_bench

    reports = [check_report_path(path) for path in settings.get("report", ())]
    exports = [settings["export_json"]] if "export_json" in settings else []
    read = [file for model in settings["models"] for file in checks.files_of(model)]
    checks.check_writes([*reports, *exports], read)
    found = run_bench(
        settings["models"],
        settings.get("provider", "cpu").split(","),
        settings.get("batch"),
        settings.get("threads", (None,)),
        reports,
        command=shlex.join(["onnxprune", "bench", *given]),
        **{key: settings[key] for key in ("fp16", "cuda_graph", "prefer_nhwc", "sparsity")},
    )
    for path in exports:
        hyperfine.write(found, path)
    if settings["json"]:
        streams.say(as_json(found).rstrip("\n"))
        return 0
    with streams.printing() as stream:
        print_report(found, stream)
    return 0


def _methods(given: list[str]) -> int:
    Parser(prog="onnxprune methods", description="Methods and what they need.").parse_args(given)
    from onnxprune.methods import LISTED

    for name, (needs, summary) in sorted({**LISTED, **_added_methods()}.items()):
        streams.say(f"{name:10s} needs {needs:28s} {summary}")
    return 0


def _added_methods() -> dict[str, tuple[str, str]]:
    """The lines on methods that a --plugin registered."""
    base = sys.modules.get("onnxprune.methods.base")
    return {} if base is None else {name: base.told(method) for name, method in base.METHODS.items()}


def _ops(given: list[str]) -> int:
    Parser(prog="onnxprune ops", description="Operators that coupling, torch and cost know.").parse_args(given)
    from onnxprune.bridge import ops
    from onnxprune.coupling.registry import RULES
    from onnxprune.plan import cost

    torch_ops = {key[:2] for key in ops.registered()}
    streams.say(f"{'operator':44s} couple torch cost")
    for domain, op_type in sorted(set(RULES) | torch_ops):
        marks = [(domain, op_type) in RULES, (domain, op_type) in torch_ops, cost.counts(domain, op_type)]
        name = f"{domain}.{op_type}" if domain else op_type
        streams.say(f"{name:44s} {'  '.join('yes ' if mark else '-   ' for mark in marks)}".rstrip())
    return 0


def _of(module: str) -> Callable[[list[str]], int]:
    """`run` of a module beside this one, which is imported when the command is called."""

    def run(given: list[str]) -> int:
        return import_module(f"onnxprune.cli.{module}").run(given)

    return run


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "inspect": _inspect,
    "normalize": _normalize,
    "apply": _apply,
    "verify": _verify,
    "bench": _bench,
    "methods": _methods,
    "ops": _ops,
    "compare": _of("compare"),
    "sensitivity": _of("sensitivity"),
    "calibrate": _of("calibrate"),
    "card": _of("card"),
    "check": _of("check"),
    "compare-reports": _of("compare_reports"),
}
