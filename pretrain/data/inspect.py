"""Shows a batch as a person can read it: which documents share a row, what is fed, what is predicted, what is not."""

import os
from collections.abc import Iterator

import numpy as np

from pretrain.core.errors import check
from pretrain.data.assembly import Arrays, Contents
from pretrain.data.corpus import document_origins
from pretrain.data.loader import Loader
from pretrain.data.tokenizers import Tokenizer

PLUMBING = ("segment_ids", "positions", "source_ids", "first_inputs")


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
    check(rows >= 1, f"rows = {rows} must be 1 or more")
    batch, contents = loader.batch(step), loader.contents(step)
    documents = loader.documents(contents)
    names = document_origins(corpus_dir, documents) if corpus_dir else {}
    sources = loader.info["sources"]
    shown = min(rows, len(contents.row_source))
    lines = [_headline(loader, step, contents, batch)]
    for row in range(shown):
        pieces = np.flatnonzero(contents.row == row)
        if not pieces.size:
            lines.append(f"row {row}: empty, past the end of the data")
            continue
        lines.append(f"row {row}: {len(pieces)} piece{'s' * (len(pieces) > 1)} of {sources[contents.row_source[row]]}")
        for number, piece in enumerate(pieces.tolist(), 1):
            document = int(documents[piece])
            lines.append(f"  {number}. {_span(contents, piece)} of document {names.get(document, document)}")
            lines += [f"     {line}" for line in _arrays(batch, row, number, tokenizer, characters)]
    if shown < len(contents.row_source):
        lines.append(f"… and {len(contents.row_source) - shown} more rows")
    return "\n".join(lines)


def _headline(loader: Loader, step: int, contents: Contents, batch: Arrays) -> str:
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items())
    found = np.bincount(contents.row_source[contents.row_source >= 0], minlength=len(loader.info["sources"]))
    counts = ", ".join(f"{count} {source}" for source, count in zip(loader.info["sources"], found, strict=True))
    return f"batch {step} of plan {loader.fingerprint}: rows {counts}; {len(contents.row)} pieces\n{shapes}"


def _span(contents: Contents, piece: int) -> str:
    start = int(contents.pieces.offset[piece])
    ends = " and ".join(str(start + int(length)) for length in contents.pieces.length[piece])
    return f"elements {start} to {ends}, epoch {int(contents.epoch[piece])},"


def _arrays(batch: Arrays, row: int, segment: int, tokenizer: Tokenizer | None, characters: int) -> Iterator[str]:
    """One line for each array of the batch that has something of the segment."""
    for name, array in batch.items():
        if name.endswith(PLUMBING) or array.ndim < 2:
            continue
        segments = batch.get(f"{name}_segment_ids", batch.get("segment_ids"))
        if segments is None or segments.shape != array.shape[:2]:
            continue
        values = array[row][segments[row] == segment]
        if array.ndim > 2 or (array.dtype.kind == "f" and "weight" not in name):
            yield f"{name}: {list(values.shape)}, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
        elif array.dtype.kind == "f" or name.endswith("mask"):
            yield f"{name}: {np.count_nonzero(values)} of {len(values)} not 0, sum {values.sum():.6g}"
        elif tokenizer is not None and not (values < 0).any():
            yield f"{name}: {_shortened(_decoded(tokenizer, values), characters)}"
        else:
            yield f"{name}: {_shortened(' '.join(map(str, values.tolist())), characters)}"


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
