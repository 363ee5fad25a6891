"""Numbers as people read them."""

import math
from collections.abc import Sequence


def si(value: float | None, digits: int = 3) -> str:
    """12,345,678 as ``12.3M``; small whole numbers as they are."""
    if value is None:
        return "–"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= size:
            scaled = value / (1e3 if suffix == "K" else size)
            return f"{scaled:.{digits}g}{suffix}" if abs(scaled) < 1000 else f"{scaled:,.0f}{suffix}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.{digits}g}"


def scientific(value: float | None) -> str:
    """3.1e12 as ``3.1×10¹²``."""
    if value is None:
        return "–"
    if value <= 0:
        return f"{value:g}"
    exponent = math.floor(math.log10(value))
    superscript = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{value / 10**exponent:.1f}×10{superscript}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.4567 as ``45.7%``."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """A plain decimal."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int = 3, as_percent: bool = False) -> str:
    """``[0.41, 0.49]``, or nothing when there is no interval."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return ""
    low, high = bounds
    return f"[{100 * low:.1f}, {100 * high:.1f}]%" if as_percent else f"[{low:.{digits}f}, {high:.{digits}f}]"


def share(value: float | None, bounds: Sequence[float] | None) -> str:
    """``45.7% [41.2, 50.3]%``."""
    return f"{percent(value)} {interval(bounds, as_percent=True)}".strip()


def duration(seconds: float | None) -> str:
    """Seconds as ``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float | None) -> str:
    """Bytes as ``1.9 GB``."""
    if count is None:
        return "–"
    for unit, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {suffix}"
    return f"{count:.0f} B"
