"""Counts in sentences."""


def counted(count: int | float, noun: str) -> str:
    """'1 sample', '2 samples', '0.5 epochs'."""
    number = f"{count:.3g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}{'s' if number != '1' else ''}"
