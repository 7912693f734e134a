"""From the bytes of an HTML page to its main text: charset, then main-content extraction, both by Resiliparse.

Resiliparse (Bevendorff et al. 2018, "Elastic ChatNoir") leaves out navigation, side bars, footers, comments and hidden
elements by rules on tags, classes and roles; it is what DCLM (Li et al. 2024) chose for speed at trafilatura's quality.
"""

import re
from typing import NamedTuple

import numpy as np
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

MAX_DEPTH = 2_000  # of nested elements; time grows with the square of it (0.1 s here), and real pages stay below 200
MIN_MAIN = 200  # characters; with less than that all text of the page is taken
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
# Elements that never hold others, or that the next of their kind closes.
NO_DEPTH = set("area base br col dd dt embed hr img input li link meta option p param source".split())  # noqa: SIM905
NO_DEPTH |= {"tbody", "td", "tfoot", "th", "thead", "tr", "wbr"}
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


class Page(NamedTuple):
    """What is left of a page.

    Attributes:
        text: the main text, or all of it.
        title: of the `title` element; may be empty.
        charset: the name that the bytes were decoded by.
    """

    text: str
    title: str
    charset: str


def read_page(content: bytes, charset: str | None = None, is_main: bool = True) -> Page:
    """Decodes a page and takes its text out.

    Args:
        content: the page, undamaged or not.
        charset: as the server said; a byte order mark goes before it, the page's own `meta` and its bytes come after.
        is_main: only the main content, unless next to nothing is found to be; otherwise all text that a browser shows.

    Raises:
        ValueError: elements nested so deep that no browser would show them.
    """
    html, found = decode(content, charset, is_html=True)
    if nesting(html) > MAX_DEPTH:
        raise ValueError(f"elements nested deeper than {MAX_DEPTH:,}")
    tree = HTMLTree.parse(html)
    text = extract_plain_text(tree, main_content=is_main, alt_texts=False, comments=not is_main)
    if is_main and len(text) < MIN_MAIN:  # the rules took the main content for something else
        text = extract_plain_text(tree, alt_texts=False)
    return Page(text.strip(), " ".join((tree.title or "").split()), found)


def decode(content: bytes, charset: str | None = None, is_html: bool = False) -> tuple[str, str]:
    """Text of bytes of an uncertain charset, with U+FFFD for what is no character, and the charset.

    The order is the HTML standard's: byte order mark, what the server said, the page's `meta`, the bytes themselves.
    """
    name = next((name for mark, name in BOMS if content.startswith(mark)), None)
    name = name or (charset and map_encoding_to_html5(charset, fallback_utf8=False))
    name = name or detect_encoding(content, from_html_meta=is_html) or "utf-8"
    # Pages are cut at a byte count by crawlers: the rest of a character at the end is no damage.
    return bytes_to_str(content, name, errors="replace", fallback_encodings=()), name


def nesting(html: str) -> int:
    """At most how deep elements of a page are nested; exact only where that is more than half of `MAX_DEPTH`."""
    codes = np.frombuffer(html.encode("utf-8", "replace"), np.uint8)
    after = codes[1:][codes[:-1] == ord("<")]
    steps = np.where(after == ord("/"), -1, ((after | 32) >= ord("a")) & ((after | 32) <= ord("z")))
    rise = np.cumsum(steps)
    bound = int((rise - np.minimum.accumulate(rise)).max(initial=0))
    if bound <= MAX_DEPTH // 2:
        return bound
    depth = deepest = 0
    for closing, name in TAG.findall(html):
        if name.lower() not in NO_DEPTH:
            depth = max(0, depth - 1) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest
