"""Numbers of a scaling study as people read them."""

import math
from collections.abc import Sequence


def si(value: float | None, digits: int = 3) -> str:
    """16.1e12 as ``16.1T``."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1e16:
        return compute(value)
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size, digits)}{suffix}"
    return _digits(value, digits)


def _digits(value: float, digits: int) -> str:
    """As many digits as asked for, zeros at the end kept: 16.0, 393."""
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(digits - whole, 0)}f}" if abs(value) >= 0.01 else f"{value:.{digits}g}"


def power(value: float) -> str:
    """3e11 as ``3×10¹¹``."""
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10**exponent:.2g}"
    digits = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{digits}" if lead == "1" else f"{lead}×10{digits}"


def compute(value: float | None) -> str:
    """FLOPs: ``3.8e25``."""
    if value is None:
        return "-"
    lead, exponent = f"{value:.2e}".split("e")
    return f"{lead.rstrip('0').rstrip('.')}e{int(exponent)}"


def span(bounds: Sequence[float] | None, form: str = ".3f") -> str:
    """``[0.495, 0.579]``; ``form="si"`` for sizes; "no interval" where there is none."""
    if bounds is None:
        return "no interval"
    return "[{}, {}]".format(*(si(v) if form == "si" else f"{v:{form}}" for v in bounds))


def times(ratio: float | None) -> str:
    """An extrapolation ratio: ``3,800x``, ``2.5x``."""
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"
