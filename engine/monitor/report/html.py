"""HTML from Python: everything that comes from outside is escaped here, and numbers are written for people."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

_WITHOUT_END = ("input", "meta")
DASH = "\u2013"  # stands where there is no value


class Html(str):
    """Markup that is already safe."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return `value` as it may stand in text and in quoted attributes; Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Html:
    """Return the escaped parts, one after the other."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, *parts: object, **attributes: object) -> Html:
    """Return an element; ``class_`` and ``data_x`` become class and data-x, and None leaves an attribute out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>" if name in _WITHOUT_END else f"<{name}{written}>{join(parts)}</{name}>")


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = (), **kind: str
) -> Html:
    """Return a table that scrolls sideways when it must; `numbers` are the columns set flush right."""
    right = set(numbers)

    def line(cells: Sequence[object], name: str) -> Html:
        return tag("tr", *(tag(name, cell, class_="n" if at in right else None) for at, cell in enumerate(cells)))

    body = join(line(row, "td") for row in rows)
    inner = tag("table", tag("thead", line(head, "th")), tag("tbody", body), **kind)
    return tag("div", inner, class_="scroll")


def card(title: str, *parts: object, hint: object = "", name: str = "", wide: bool = True) -> Html:
    """Return a panel of the page; `name` is what the navigation calls it."""
    heading = tag("header", tag("h3", title), tag("p", hint, class_="hint") if hint else "")
    return tag("section", heading, *parts, class_="card wide" if wide else "card", data_panel=name or None)


def bar(parts: list[tuple[str, float, str]]) -> Html:
    """Return one bar cut into named parts, and its legend with what each is."""
    whole = sum(value for _, value, _ in parts) or 1.0
    pieces = [
        tag("i", class_=f"part c{index % 8}", style=f"width:{100 * value / whole:.3f}%", title=f"{name}: {said}")
        for index, (name, value, said) in enumerate(parts)
    ]
    keys = [
        tag("span", tag("i", class_=f"swatch c{index % 8}"), f"{name} ", tag("b", said), f" {100 * value / whole:.1f}%")
        for index, (name, value, said) in enumerate(parts)
    ]
    return join([tag("div", *pieces, class_="bar"), tag("div", *keys, class_="keys")])


def missing(what: str) -> Html:
    """Return the line that stands where there is nothing to show."""
    return tag("p", what, class_="missing")


def script_json(value: Any) -> Html:
    """Return JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        plain = plain.replace(letter, f"\\u{ord(letter):04x}")
    return Html(plain)


# -- numbers -------------------------------------------------------------------------------------------------

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, digits: int = 4) -> str:
    """Return a number in `digits` significant digits, with k, M, G or T from ten thousand on; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e5:
        return f"{int(value):,}"
    for size, prefix in _PREFIXES:
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.{digits}g} {prefix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def fixed(value: float | None) -> str:
    """Return a loss in four decimals; a dash for none."""
    return DASH if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """Return seconds as the two largest units that say something, such as 3 d 4 h or 12.3 s."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        size, unit = next((row for row in ((1, "s"), (1e-3, "ms")) if seconds >= row[0] or seconds == 0), (1e-6, "µs"))
        return f"{seconds / size:.3g} {unit}"
    whole = round(seconds)
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    size, unit, small, below = next(row for row in units if whole >= row[0])
    return f"{whole // size} {unit} {whole % size // small} {below}"


def moment(seconds: float) -> str:
    """Return a wall time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds > 0 else DASH
