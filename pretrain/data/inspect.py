"""Shows a batch as a person can read it: which documents share a row, what is fed, what is predicted, what is not."""

import os
from dataclasses import dataclass

import numpy as np

from pretrain.core.errors import check
from pretrain.data.assembly import Arrays, Contents
from pretrain.data.corpus import document_origins
from pretrain.data.loader import Loader
from pretrain.data.tokenizers import Tokenizer

PLUMBING = ("segment_ids", "positions", "source_ids", "first_inputs")


@dataclass(frozen=True)
class Piece:
    """One piece of a row: where it comes from, and its part of each array of the batch."""

    caption: str
    arrays: Arrays


@dataclass(frozen=True)
class Row:
    """One row of a batch: its source (None past the end of the data) and what is packed in it, in order."""

    source: str | None
    pieces: list[Piece]


def headline(loader: Loader, step: int) -> str:
    """Two lines on the whole batch: its plan and sources, and its arrays."""
    batch, contents, sources = loader.batch(step), loader.contents(step), loader.info["sources"]
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items())
    found = np.bincount(contents.row_source[contents.row_source >= 0], minlength=len(sources))
    counts = ", ".join(f"{count} {source}" for source, count in zip(sources, found, strict=True))
    return f"batch {step} of plan {loader.fingerprint}: rows {counts}; {len(contents.row)} pieces\n{shapes}"


def packed_rows(loader: Loader, step: int, rows: int, corpus_dir: os.PathLike | str | None = None) -> list[Row]:
    """The first `rows` rows of this host's part of global batch `step`.

    Args:
        corpus_dir: the curated corpus of the cache, to name documents by id and origin; None for their numbers.
    """
    check(rows >= 1, f"rows = {rows} must be 1 or more")
    batch, contents = loader.batch(step), loader.contents(step)
    documents = loader.documents(contents)
    names = document_origins(corpus_dir, documents) if corpus_dir else {}
    shown = []
    for row, source in enumerate(contents.row_source[:rows].tolist()):
        pieces = []
        for number, piece in enumerate(np.flatnonzero(contents.row == row).tolist(), 1):
            document = int(documents[piece])
            caption = f"{_span(contents, piece)} of document {names.get(document, document)}"
            pieces.append(Piece(caption, _part(batch, row, number)))
        shown.append(Row(loader.info["sources"][source] if source >= 0 else None, pieces))
    return shown


def describe_batch(
    loader: Loader,
    step: int,
    tokenizer: Tokenizer | None = None,
    *,
    rows: int = 4,
    characters: int = 300,
    corpus_dir: os.PathLike | str | None = None,
) -> str:
    """Renders this host's part of global batch `step`.

    Args:
        loader: the loader of the run.
        step: which batch.
        tokenizer: decodes integer features; None prints ids.
        rows: rows to show; the rest is counted.
        characters: of each piece's text; the middle of a longer one is left out.
        corpus_dir: the curated corpus of the cache, to name documents by id and origin.

    Returns:
        Lines of text: per row, its pieces, and per piece its source, document, span, and each array of the batch.
    """
    shown = packed_rows(loader, step, rows, corpus_dir)
    lines = [headline(loader, step)]
    for number, row in enumerate(shown):
        if row.source is None:
            lines.append(f"row {number}: empty, past the end of the data")
            continue
        lines.append(f"row {number}: {len(row.pieces)} piece{'s' * (len(row.pieces) > 1)} of {row.source}")
        for place, piece in enumerate(row.pieces, 1):
            lines.append(f"  {place}. {piece.caption}")
            if "target_positions" in piece.arrays and tokenizer is not None:
                lines.append(f"     predicts: {_shortened(_hidden(piece.arrays, tokenizer), characters)}")
            for name, values in piece.arrays.items():
                lines.append(f"     {name}: {_line(name, values, tokenizer, characters)}")
    total = len(next(iter(loader.batch(step).values())))
    if len(shown) < total:
        lines.append(f"… and {total - len(shown)} more rows")
    return "\n".join(lines)


def is_tokens(values: np.ndarray, tokenizer: Tokenizer | None) -> bool:
    """Whether an array is one of token ids that `tokenizer` can decode."""
    known = tokenizer is not None and values.dtype.kind in "iu" and values.ndim == 1
    return known and (values.size == 0 or 0 <= values.min() <= values.max() < tokenizer.vocab_size)


def is_mask(name: str, values: np.ndarray) -> bool:
    """Whether an array says, element by element, what counts."""
    return values.ndim == 1 and (name.endswith("mask") or (values.dtype.kind == "f" and "weight" in name))


def summary(name: str, values: np.ndarray) -> str:
    """One line on an array of numbers, or on a mask."""
    if is_mask(name, values):
        return f"{np.count_nonzero(values)} of {len(values)} not 0, sum {values.sum():.6g}"
    if not values.size:
        return f"{list(values.shape)}"
    return f"{list(values.shape)}, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"


def _span(contents: Contents, piece: int) -> str:
    start = int(contents.pieces.offset[piece])
    ends = " and ".join(str(start + int(length)) for length in contents.pieces.length[piece])
    return f"elements {start} to {ends}, epoch {int(contents.epoch[piece])},"


def _part(batch: Arrays, row: int, segment: int) -> Arrays:
    """What each array of the batch has of a segment."""
    part, by_place = {}, batch.get("target_positions")
    segment_ids = [array for name, array in batch.items() if name.endswith("segment_ids")]
    for name, array in batch.items():
        if array.ndim < 2 or (name.endswith(PLUMBING) and name != "target_positions"):
            continue
        same_shape = next((ids for ids in segment_ids if ids.shape == array.shape[:2]), None)
        segments = batch.get(f"{name}_segment_ids", same_shape)
        if segments is not None and segments.shape == array.shape[:2]:
            part[name] = array[row][segments[row] == segment]
        elif by_place is not None and by_place.shape == array.shape[:2]:
            part[name] = array[row][_chosen(batch, row, segment)]
    if by_place is not None:
        part["target_positions"] = part["target_positions"] - np.flatnonzero(batch["segment_ids"][row] == segment)[0]
    return part


def _chosen(batch: Arrays, row: int, segment: int) -> np.ndarray:
    """Which of a row's `target_positions` count and lie in a segment."""
    return (batch["segment_ids"][row][batch["target_positions"][row]] == segment) & (batch["loss_weights"][row] > 0)


def _hidden(arrays: Arrays, tokenizer: Tokenizer) -> str:
    """The piece's text with what is to be predicted in brackets: what stands there, and what should."""
    tokens, parts, start = arrays["tokens"], [], 0
    order = np.argsort(arrays["target_positions"])
    for place, target in zip(arrays["target_positions"][order], arrays["targets"][order], strict=True):
        shown, wanted = (repr(tokenizer.decode([int(token)]))[1:-1] for token in (tokens[place], target))
        parts += [repr(tokenizer.decode(tokens[start:place]))[1:-1], f"[{shown} → {wanted}]"]
        start = place + 1
    return "".join([*parts, repr(tokenizer.decode(tokens[start:]))[1:-1]])


def _line(name: str, values: np.ndarray, tokenizer: Tokenizer | None, characters: int) -> str:
    if values.ndim > 1 or values.dtype.kind == "f" or is_mask(name, values):
        return summary(name, values)
    if is_tokens(values, tokenizer):
        return _shortened(_decoded(tokenizer, values), characters)
    return _shortened(" ".join(map(str, values.tolist())), characters)


def _decoded(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Text with the special ids shown by name, as a Python string literal."""
    special = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    borders = np.flatnonzero(np.isin(ids, list(special)))
    parts, start = [], 0
    for border in [*borders.tolist(), len(ids)]:
        if border > start:
            parts.append(repr(tokenizer.decode(ids[start:border])))
        if border < len(ids):
            parts.append(special[int(ids[border])])
        start = border + 1
    return " ".join(parts)


def _shortened(text: str, characters: int) -> str:
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"
