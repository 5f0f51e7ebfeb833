"""`onnxprune calibrate`: what multiple of channels this machine likes, measured and kept for `--align calibrated`."""

import logging
from typing import Any

from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.system import streams

LOG = logging.getLogger("onnxprune")


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune calibrate",
        description="Measures at which multiples of channels small models run best on this machine, in about ten "
        "seconds, and keeps the result in the user's cache folder, where --align calibrated finds it.",
    )
    made.add_argument("--provider", default="cpu", help="cpu, cuda or tensorrt (default: cpu)")
    made.add_argument("--threads", type=int, default=1, help="intra-op threads (default: 1)")
    made.add_argument("--quantize", choices=["int8"], help="for runs with --quantize int8 (default: models in floats)")
    cli.verbosity(made)
    return made


def run(arguments: list[str]) -> int:
    """Measures, prints the table, and stores the result."""
    settings = cli.settings_of(parser(), arguments)
    provider, threads = settings["provider"], settings["threads"]
    if threads < 1:
        raise UsageError(f"--threads {threads}: give 1 or more")
    from onnxprune.measure import alignment, calibrations

    form = settings.get("quantize", "")
    found = alignment.calibrate(provider, threads, quantize=_stored(form, provider) if form else None, say=LOG.info)
    path = calibrations.store(provider, found, form)
    streams.say(table(found).rstrip("\n"))
    streams.say(f"--align calibrated on {provider}{form and f' with {form}'}: multiples of {found.multiple}")
    LOG.info("kept in %s", path)
    return 0


def _stored(form: str, provider: str) -> Any:
    """A function that quantizes a probe model as `form`."""
    import onnx_ir as ir

    from onnxprune import graph, quantize

    asked = quantize.parse(form)
    assert asked is not None
    quantize.check(asked, provider, has_samples=True)
    return lambda proto: quantize.as_stored(graph.normalize(ir.from_proto(proto)), asked, provider)


def table(found) -> str:
    """Efficiency in percent of full blocks, a line per kind of model, a column per multiple."""
    from onnxprune.report import text

    multiples = list(next(iter(found.efficiency.values())))
    head = ["multiples of", *map(str, multiples)]
    rows = [[kind, *(f"{100 * row[m]:.0f} %" for m in multiples)] for kind, row in found.efficiency.items()]
    return text.columns([head, *rows])
