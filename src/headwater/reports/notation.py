"""How numbers, names and trends are written: nothing that is not zero is ever shown as zero."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from headwater.records.statistics import Statistics

__all__ = [
    "ASCII",
    "counted",
    "decades",
    "elide",
    "factor",
    "percent",
    "power",
    "rms_range",
    "rms_text",
    "scientific",
    "shape_text",
    "shorten_names",
    "sparkline",
]

_RAMP = "▁▂▃▄▅▆▇█"
# What a console that has no such character shows instead; every one is one cell wide, so columns stay aligned.
ASCII = str.maketrans(
    {
        "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "█": "#",
        "▏": " ", "▎": " ", "▍": " ", "▌": "#", "▋": "#", "▊": "#", "▉": "#", "░": ".", "┃": "|", "│": "|", "─": "-",
        "━": "-", "┄": "-", "·": "|", "×": "x", "→": ">", "←": "<", "−": "-", "–": "-", "…": "~", "°": " ", "±": "~",
        "∂": "d", "≥": ">", "≤": "<", "“": '"', "”": '"', "’": "'", "√": "v", "²": "2", "•": "*", "✓": "+", "✗": "x",
        "⚠": "!", "\N{NO-BREAK SPACE}": " ",
    }
)  # fmt: skip


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    Args:
        number: how many.
        noun: in the singular; the plural adds an s.

    Returns:
        Such as ``1 layer`` or ``1,001 layers``.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def scientific(value: float) -> str:
    """A number in scientific notation with three significant digits.

    Args:
        value: any number.

    Returns:
        Such as ``2.17e-07``; ``0`` only for an exact zero.

    Example:
        >>> scientific(2.17e-7), scientific(0.0), scientific(float("nan"))
        ('2.17e-07', '0', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return "0" if value == 0.0 else f"{value:.2e}"


def power(log10: float, digits: int = 2) -> str:
    """10 to a power, in scientific notation, also where that leaves the range of a double.

    Args:
        log10: the exponent.
        digits: digits after the decimal point.

    Returns:
        Such as ``3.16e-401`` for -400.5.

    Example:
        >>> power(-400.5), power(3), power(-7.2, 0)
        ('3.16e-401', '1.00e+03', '6e-08')
    """
    exponent = math.floor(log10)
    mantissa = round(10.0 ** (log10 - exponent), digits)
    if mantissa >= 10.0:
        mantissa, exponent = mantissa / 10.0, exponent + 1
    return f"{mantissa:.{digits}f}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def rms_text(statistics: Statistics | None) -> str:
    """The rms of a tensor as a table shows it.

    Args:
        statistics: of the tensor, or None when it was not observed.

    Returns:
        ``-`` when there is nothing to show (not observed, empty, or no finite element), ``0 (exact)`` when every
        finite element is zero, else scientific notation.

    Example:
        >>> rms_text(Statistics.of([3.0, -4.0])), rms_text(Statistics.of([0.0])), rms_text(None)
        ('3.54e+00', '0 (exact)', '-')
    """
    if statistics is None or not statistics.finite_count:
        return "-"
    if math.isinf(statistics.rms_log10):
        return "0 (exact)"
    value = statistics.rms
    return scientific(value) if 1e-300 < value < 1e300 else power(statistics.rms_log10)


def rms_range(many: Iterable[Statistics | None]) -> str:
    """Smallest and largest rms of several tensors.

    Args:
        many: statistics, None where a tensor was not observed.

    Returns:
        ``1e-09..3e-05``, ``1.1..1.4e-09`` when the two are near, one value when they agree to the digits shown,
        ``0..3e-05`` when some are exactly zero.

    Example:
        >>> rms_range([Statistics.of([1.1e-9]), Statistics.of([1.4e-9])]), rms_range([Statistics.of([2.0]), None])
        ('1.1..1.4e-09', '2.00e+00')
    """
    seen = [s for s in many if s is not None and s.finite_count]
    if not seen:
        return "-"
    low, high = min(seen, key=lambda s: s.rms_log10), max(seen, key=lambda s: s.rms_log10)
    if rms_text(low) == rms_text(high):
        return rms_text(low)
    ends = ["0" if math.isinf(s.rms_log10) else power(s.rms_log10, 0) for s in (low, high)]
    if ends[0] == ends[1]:
        ends = [power(s.rms_log10, 1) for s in (low, high)]
        if ends[0] == ends[1]:
            return ends[1]
        ends[0] = ends[0].split("e")[0]
    return "..".join(ends)


def decades(value: float) -> str:
    """A signed difference of two log10 values.

    Args:
        value: in decades.

    Returns:
        Such as ``−9.46 decades``: three digits, never rounded to nothing.

    Example:
        >>> decades(-9.46), decades(0.0211), decades(-12.345), decades(0.0)
        ('−9.46 decades', '+0.0211 decades', '−12.3 decades', '0 decades')
    """
    if value == 0.0:
        return "0 decades"
    number = f"{abs(value):.1f}" if abs(value) >= 10.0 else f"{abs(value):.3g}"
    return f"{'−' if value < 0 else '+'}{number} decades"


def factor(log10: float) -> str:
    """A ratio, from its log10.

    Args:
        log10: of the ratio.

    Returns:
        Such as ``×0.143`` or ``×3.5e-10``.

    Example:
        >>> factor(-0.845), factor(-9.46), factor(1.0)
        ('×0.143', '×3.47e-10', '×10')
    """
    return f"×{10**log10:.3g}" if -3 <= log10 <= 3 else f"×{power(log10)}"


def percent(fraction: float) -> str:
    """A share in percent that is 0 only for zero and 100 only for one.

    Args:
        fraction: 0 to 1.

    Returns:
        Such as ``12%``, ``0.03%``, ``>99.9%``.

    Example:
        >>> percent(0.123), percent(0.0003), percent(0.99999), percent(1.0), percent(0.0)
        ('12%', '0.03%', '>99.9%', '100%', '0%')
    """
    if fraction in (0.0, 1.0):
        return f"{fraction:.0%}"
    share = 100.0 * fraction
    if share > 99.9:
        return ">99.9%"
    return f"{share:.0f}%" if 1.0 <= share <= 99.0 else f"{share:.1f}%" if share > 99.0 else f"{share:.2g}%"


def shape_text(shape: Sequence[int] | None) -> str:
    """A shape as ``32×10``.

    Args:
        shape: dimensions, or None.

    Returns:
        The text; ``scalar`` for no dimension, ``-`` for None.
    """
    if shape is None:
        return "-"
    return "×".join(map(str, shape)) or "scalar"


def elide(text: str, width: int) -> str:
    """Shorten a text in the middle; two thirds of what stays is its end, where module names differ.

    Args:
        text: any text.
        width: the largest number of characters.

    Returns:
        The text, or its ends around ``…``.

    Example:
        >>> elide("transformer.h.11.attn.c_proj", 20)
        'transf…1.attn.c_proj'
    """
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail = (2 * (width - 1) + 2) // 3
    head = width - 1 - tail
    return f"{text[:head]}…{text[len(text) - tail :]}"


def shorten_names(names: Sequence[str], width: int) -> list[str]:
    """Shorten dotted names alike, so that rows of one table stay comparable.

    Leading words become their first letter, as many in every name as the longest one needs; numbers and the last
    part stay. What is still too long is shortened in the middle.

    Args:
        names: of layers or parameters.
        width: the largest number of characters.

    Returns:
        One text per name.

    Example:
        >>> shorten_names(["encoder.stages.0.layers.1.convolution", "encoder.pooler"], 24)
        ['e.s.0.l.1.convolution', 'e.pooler']
    """
    shown = list(names)
    most = max((name.count(".") for name in names), default=0)
    for leading in range(1, most + 1):
        if all(len(name) <= width for name in shown):
            break
        shown = [_abbreviate(name, leading) for name in names]
    return [elide(name, width) for name in shown]


def _abbreviate(name: str, leading: int) -> str:
    parts = name.split(".")
    count = min(leading, len(parts) - 1)
    return ".".join([p if p.isdigit() or not p else p[0] for p in parts[:count]] + parts[count:])


def sparkline(values_log10: Sequence[float], width: int = 40) -> str:
    """A row of blocks, one per value (or per group of neighbours when there are more than ``width``).

    Args:
        values_log10: log10 values; a NaN shows as a space and -inf (an exact zero) as ``0``.
        width: the largest number of characters.

    Returns:
        Blocks from ``▁`` (the smallest) to ``█`` (the largest); all ``▄`` when the values agree to 0.01 decades.

    Example:
        >>> sparkline([-7.0, -5.0, -3.5, -2.0])
        '▁▄▆█'
        >>> sparkline([1.0, 1.0])
        '▄▄'
    """
    values = list(values_log10)
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [_middle(values[a:b]) for a, b in itertools.pairwise(edges)]
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    line = ""
    for v in values:
        if math.isnan(v):
            line += " "
        elif math.isinf(v):
            line += "0"
        elif high - low < 0.01:
            line += "▄"
        else:
            line += _RAMP[min(7, int(8 * (v - low) / (high - low)))]
    return line


def _middle(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        return sum(finite) / len(finite)
    return -math.inf if any(math.isinf(v) for v in values) else math.nan
