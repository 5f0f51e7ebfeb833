"""Numbers as readers write them; unknown is a dash."""

from collections.abc import Sequence

from onnxprune.outputs.metrics import LOWER_IS_BETTER, Accuracy
from onnxprune.system.words import counted

DASH = "–"
LABELS = {
    "top1": "Top-1 accuracy",
    "agreement": "Agreement with the original",
    "relative_error": "Relative error",
    "text_agreement": "Agreement of texts with the original",
    "mean_iou": "Mean intersection over union with the original",
    "overlap": "Overlap of scores with the original",
    "detections_ap": "Average precision of detections against the original's",
    "rank_correlation": "Rank correlation of similarities with the original",
    "explained": "Share of the original's variance explained",
    "share_kept": "Share of the original kept, of its worst part",
}


def count(value: float | None) -> str:
    """1234567 -> '1.23 M'."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Bytes: 1234567 -> '1.18 MiB'."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float | None, base: int, units: tuple[str, ...]) -> str:
    if value is None:
        return DASH
    step = 0
    while abs(value) >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    return f"{digits(value) if step else f'{value:.0f}'} {units[step]}".strip()


def digits(value: float | None, significant: int = 3) -> str:
    """A number with `significant` digits, never in powers of ten above 0.001."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{significant - 1}e}"
    whole = len(str(int(abs(value))))
    places = max(0, significant - whole) if abs(value) >= 1 else significant
    return f"{value:.{places}f}"


def milliseconds(value: float | None) -> str:
    """2.4372 -> '2.44 ms'."""
    return DASH if value is None else f"{digits(value)} ms"


def times(value: float | None) -> str:
    """A ratio after / before: 0.5 -> '0.500'."""
    return DASH if value is None else f"{value:.3f}"


def percent_left(value: float | None) -> str:
    """A ratio after / before: 0.5 -> '50.0 %'."""
    return DASH if value is None else f"{100 * value:.1f} %"


def speedup(value: float | None) -> str:
    """A ratio after / before of times: 0.5 -> '2.00x faster', 2 -> '2.00x slower'."""
    if not value:
        return DASH
    return f"{1 / value:.2f}x faster" if value <= 1 else f"{value:.2f}x slower"


def accuracy(value: Accuracy | None) -> str:
    """0.9173 -> '91.73 %'; relative errors as they are."""
    return DASH if value is None else of_metric(value.metric, value.value)


def of_metric(name: str, value: float) -> str:
    """A number in the terms of its metric: shares in percent."""
    return f"{100 * value:.2f} %" if is_share(name) else digits(value)


def is_share(metric: str) -> bool:
    """Whether a metric is a share of the samples, which is shown in percent."""
    return metric in LABELS and metric not in LOWER_IS_BETTER


def scale(value: Accuracy | None) -> str:
    """The null model's value and the original's: '10.00 to 93.39 %'."""
    if value is None or value.null is None or value.original is None:
        return DASH
    if is_share(value.metric):
        return f"{100 * value.null:.2f} to {100 * value.original:.2f} %"
    return f"{digits(value.null)} to {digits(value.original)}"


def kept(value: Accuracy | None) -> str:
    """The share kept between null model and original: '98.7 %'."""
    if value is None or value.null is None:
        return DASH
    return "none: the metric tells nothing" if value.share is None else f"{100 * value.share:.2f} %"


def parts(value: Accuracy | None) -> list[tuple[str, str, str, str]]:
    """(part, metric, value, share kept) of each part, where there are several."""
    if value is None or len(value.parts) < 2:
        return []
    shares = ("tells nothing" if part.share is None else f"{100 * part.share:.2f} %" for part in value.parts)
    return [(p.part, p.metric, f"{p.value:.4f}", share) for p, share in zip(value.parts, shares, strict=True)]


def accuracy_interval(value: Accuracy | None) -> str:
    """'91.17 to 92.25 %' at 95 %."""
    if value is None or value.interval95 is None:
        return DASH
    low, high = value.interval95
    if not is_share(value.metric):
        return f"{digits(low)} to {digits(high)}"
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def points(before: Accuracy | None, after: Accuracy | None) -> str:
    """The change in points, '-0.42'; a dash unless both have the same metric, and for errors."""
    if before is None or after is None or before.metric != after.metric or after.metric in LOWER_IS_BETTER:
        return DASH
    return f"{-after.drop_from(before):+.2f} points"


def provider(name: str) -> str:
    """'CPUExecutionProvider' -> 'CPU'."""
    return {"TensorrtExecutionProvider": "TensorRT"}.get(name, name.removesuffix("ExecutionProvider"))


def setting(entry) -> str:
    """How a Latency or LatencyRatio was measured: 'CPU, batch 1, 2 threads'."""
    parts = [provider(entry.provider), f"batch {entry.batch}"]
    if entry.threads is not None:
        parts.append(counted(entry.threads, "thread"))
    parts += [entry.precision] if entry.precision != "as stored" else []
    parts += ["CUDA graph"] if entry.cuda_graph else []
    return ", ".join(parts + (["NHWC"] if entry.prefer_nhwc else []))


def seconds(value: float) -> str:
    """73.2 -> '1 min 13 s'."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def shape(axes) -> str:
    """(64, 3, 7, 7) -> '64x3x7x7'."""
    return "x".join(str(axis) for axis in axes) if axes else DASH


def metric(name: str) -> str:
    """The name of a metric in a heading."""
    return LABELS.get(name, name)


def kind(entry) -> str:
    """An output's kind in words: 'classes, axis 1', or its parts."""
    axis = "" if entry["axis"] is None else f", axis {entry['axis']}"
    parts = ", ".join(f"{part['name']} {part['kind']}" for part in entry["parts"])
    inner = f" of {parts}" if entry["kind"] in ("joint", "decision") and parts else ""
    return entry["kind"] + axis + inner


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as text in columns: the first stands left, the others right."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )
