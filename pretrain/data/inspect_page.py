"""A batch as one HTML page: a bar per row with its pieces to scale, and every token, crossed out where it is masked."""

import html
import os

import numpy as np

from pretrain.data.assembly import Arrays
from pretrain.data.inspect import Piece, Row, headline, is_mask, is_tokens, packed_rows, summary
from pretrain.data.loader import Loader
from pretrain.data.tokenizers import Tokenizer

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
.bar { display: flex; height: 1.2em; background: #eee; border-radius: 3px; overflow: hidden }
.bar i { border-right: 1px solid #fff }
.tokens { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.tokens span:nth-child(even) { background: #f2f2f2 }
.tokens .off { color: #aaa; text-decoration: line-through }
.tokens .special { color: #b00 }
section { border-left: 4px solid; padding-left: 1em; margin: 1em 0 }
dt { font-weight: 600 } dd { margin: 0 0 .5em }
"""


def batch_page(
    loader: Loader,
    step: int,
    tokenizer: Tokenizer | None = None,
    *,
    rows: int = 4,
    corpus_dir: os.PathLike | str | None = None,
) -> str:
    """A page of its own, without scripts, of the first `rows` rows of this host's part of global batch `step`.

    Hovering over a token shows its place and its id; one that the batch's mask or weights leave out is crossed out.
    """
    shown = packed_rows(loader, step, rows, corpus_dir)
    capacity = {name: array.shape[1] for name, array in loader.batch(step).items() if array.ndim > 1}
    body = [f"<h1>Batch {step}</h1>", *(f"<p>{html.escape(line)}</p>" for line in headline(loader, step).splitlines())]
    for number, row in enumerate(shown):
        source = "empty, past the end of the data" if row.source is None else row.source
        body.append(f"<h2>Row {number}: {html.escape(source)}</h2>{_bars(row, capacity)}")
        body += [_piece(place, piece, tokenizer) for place, piece in enumerate(row.pieces)]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Batch {step}</title><style>{STYLE}</style>'
    return f"{head}{''.join(body)}</html>\n"


def _color(place: int) -> str:
    return f"hsl({place * 137 % 360} 55% 60%)"  # neighbours differ: 137 degrees is the golden angle


def _bars(row: Row, capacity: dict[str, int]) -> str:
    """The row to scale, a bar for each length that its arrays have."""
    bars = {}
    for name in row.pieces[0].arrays if row.pieces else ():
        widths = tuple(100 * len(piece.arrays[name]) / capacity[name] for piece in row.pieces)
        bars.setdefault(widths, name)
    return "".join(
        f'<div class="bar" title="{html.escape(name)}">'
        + "".join(f'<i style="width:{width:.3f}%;background:{_color(i)}"></i>' for i, width in enumerate(widths))
        + "</div>"
        for widths, name in bars.items()
    )


def _piece(place: int, piece: Piece, tokenizer: Tokenizer | None) -> str:
    items = []
    for name, values in piece.arrays.items():
        shown = html.escape(summary(name, values))
        if is_tokens(values, tokenizer) and not is_mask(name, values):
            shown = f'<div class="tokens">{_tokens(values, _counts(piece.arrays, name, values), tokenizer)}</div>'
        items.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return (
        f'<section style="border-color:{_color(place)}">{html.escape(piece.caption)}<dl>{"".join(items)}</dl></section>'
    )


def _counts(arrays: Arrays, name: str, values: np.ndarray) -> np.ndarray:
    """Which targets count, by the batch's masks and weights; everything else is fed and counts."""
    masks = [array for other, array in arrays.items() if is_mask(other, array) and array.shape == values.shape]
    if "target" not in name or not masks:
        return np.ones(len(values), bool)
    return np.all([mask != 0 for mask in masks], axis=0)


def _tokens(ids: np.ndarray, counts: np.ndarray, tokenizer: Tokenizer) -> str:
    special = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    parts = []
    for place, (token, counted) in enumerate(zip(ids.tolist(), counts.tolist(), strict=True)):
        text = special.get(token) or tokenizer.decode([token])
        kind = ("" if counted else "off ") + ("special" if token in special or token >= tokenizer.base_size else "")
        parts.append(f'<span class="{kind.strip()}" title="{place}: {token}">{html.escape(text)}</span>')
    return "".join(parts)
