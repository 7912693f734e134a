"""Numbers the way people read them."""

import math

NOTHING = "\u2013"  # en dash


def count(value: float) -> str:
    """1234567 -> "1,234,567"."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Three significant digits with a unit prefix: 1234567 -> "1.23 M"."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{significant(value / (1e3 if prefix == 'k' else size))} {prefix}"
    return significant(value)


def size(value: float) -> str:
    """Bytes in decimal units: 1234567 -> "1.23 MB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{significant(value)} {unit}"
        value /= 1000
    raise AssertionError


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent where that is readable; other values as they are."""
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1e6):
        return f"{value:,.0f}" if math.isfinite(value) else f"{value:g}"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(part: float, whole: float) -> str:
    """A share: "12.3 %"; only all of it is "100 %" and only none of it "0 %"; a dash of nothing."""
    if not whole:
        return NOTHING
    if part in (0, whole):
        return "100 %" if part else "0 %"
    share = 100 * part / whole
    if share < 0.05 or share >= 99.95:
        return "< 0.1 %" if share < 0.05 else "> 99.9 %"
    return f"{share:.1f} %"


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds < 60:
        return f"{significant(seconds)} s"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if number]
    return " ".join(parts[:2])
