"""HTML by construction: every text is escaped unless it is markup made here, so no document can smuggle in a script."""

import html
from collections.abc import Iterable, Sequence

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """`<tag attributes>children</tag>`; children that are not `Markup` are escaped, and so are attribute values.

    An underscore at the end of an attribute's name is left out: `class_="wide"`.
    """
    written = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def escape(text: str) -> Markup:
    """Text as HTML; control characters, which HTML cannot hold, become their pictures: ␀ and so on."""
    whole = text.encode("utf-8", "replace").decode()  # without lone surrogates, which no file can hold
    return Markup(html.escape(whole.translate(CONTROLS)))


def join(parts: Iterable[str]) -> Markup:
    """Parts one after another; those that are not `Markup` are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, labels: int = 1, total: bool = False) -> Markup:
    """A table that scrolls sideways where it has no room.

    Args:
        header: one cell per column.
        rows: the cells below, text or markup.
        labels: leading columns that hold text; the others hold numbers.
        total: the last row is a sum.
    """

    def line(cells: Sequence[str], tag: str) -> Markup:
        kinds = ["label" if index < labels else "number" for index in range(len(cells))]
        return element("tr", *(element(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)))

    body = [line(cells, "td") for cells in rows]
    foot = [element("tfoot", body.pop())] if total and len(body) > 1 else []
    whole = element("table", element("thead", line(header, "th")), element("tbody", *body), *foot)
    return element("div", whole, class_="scroll")


def bars(rows: Sequence[tuple[str, float, str]], *, strong: str = "") -> Markup:
    """A bar chart.

    Args:
        rows: (label, value >= 0, the value as shown).
        strong: label of the row to point out.
    """
    largest = max((value for _, value, _ in rows), default=0) or 1.0
    cells = []
    for label, value, shown in rows:
        bar = element("span", class_="bar", style=f"width:{100 * value / largest:.2f}%")
        kind = "strong" if label == strong else "plain"
        cells += [element("dt", label, class_=kind), element("dd", bar, element("span", shown), class_=kind)]
    return element("dl", *cells, class_="bars")


def fold(summary: str, *children: str) -> Markup:
    """Content behind a line to click on; needs no JavaScript."""
    return element("details", element("summary", summary), *children)


def missing(text: str, command: str) -> Markup:
    """Says what is not there, and the command that makes it."""
    return element("p", text, ": run ", element("code", command), ".", class_="missing")
