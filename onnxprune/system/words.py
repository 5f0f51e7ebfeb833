"""Counts and durations in sentences."""


def counted(count: int | float, noun: str) -> str:
    """'1 sample', '2 samples', '0.5 epochs'."""
    number = f"{count:.3g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}{'s' if number != '1' else ''}"


def duration(seconds: float) -> str:
    """A duration as one says it: 8 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
