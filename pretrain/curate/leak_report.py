"""What hits say: which benchmark items stand in which documents, how much of them and where; and the report of it."""

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretrain.curate.ngram_index import NgramIndex

NAME = "decontamination_report"
LISTED = 20  # documents of an item, and ignored n-grams


class Leaks(NamedTuple):
    """Pairs of a document and an item that leaked into it, by document and item; arrays of one length.

    Attributes:
        document: number of the document among `ids`.
        item: number of the item.
        found: distinct n-grams of the item in the document.
        share: of the item's n-grams.
        start, end: characters from the first of them to the last.
        excerpt: text around the first.
        ids: the documents that have any hit.
        rows: the hits that make these leaks, sorted by document and start.
    """

    document: np.ndarray
    item: np.ndarray
    found: np.ndarray
    share: np.ndarray
    start: np.ndarray
    end: np.ndarray
    excerpt: list[str | None]
    ids: pa.Array
    rows: np.ndarray


def find_leaks(hits: pa.Table, index: NgramIndex, min_ratio: float) -> Leaks:
    """Counts hits by document and item.

    Args:
        hits: columns id, ngram, start, end, excerpt; a row an n-gram found.
        index: the items.
        min_ratio: least share of an item's n-grams.
    """
    encoded = hits["id"].combine_chunks().dictionary_encode()
    start, end = hits["start"].to_numpy(), hits["end"].to_numpy()
    row, item = index.items_of(hits["ngram"].to_numpy())
    document, ngram = encoded.indices.to_numpy()[row], hits["ngram"].to_numpy()[row]
    order = np.lexsort((start[row], ngram, item, document))
    row, item, document, ngram = row[order], item[order], document[order], ngram[order]
    is_pair = np.append(True, (document[1:] != document[:-1]) | (item[1:] != item[:-1]))[: len(row)]
    is_ngram = is_pair | np.append(True, ngram[1:] != ngram[:-1])[: len(row)]
    pair = np.cumsum(is_pair) - 1
    first = np.flatnonzero(is_pair)
    found = np.add.reduceat(is_ngram.astype(np.int64), first) if len(first) else first
    share = found / np.diff(index.item_offsets)[item[first]]
    is_leak = share >= min_ratio
    starts = np.minimum.reduceat(start[row], first) if len(first) else first
    ends = np.maximum.reduceat(end[row], first) if len(first) else first
    excerpts = _excerpts(hits, row, pair, len(first))
    rows = np.unique(row[is_leak[pair]])
    rows = rows[np.lexsort((start[rows], encoded.indices.to_numpy()[rows]))]
    return Leaks(
        *(column[is_leak] for column in (document[first], item[first], found, share, starts, ends)),
        [excerpt for excerpt, is_kept in zip(excerpts, is_leak, strict=True) if is_kept],
        encoded.dictionary,
        rows,
    )


def _excerpts(hits: pa.Table, row: np.ndarray, pair: np.ndarray, pairs: int) -> list[str | None]:
    """Of each pair the excerpt that stands first in the document."""
    has_excerpt = hits["excerpt"].is_valid().to_numpy(zero_copy_only=False)[row]
    candidates, owner = row[has_excerpt], pair[has_excerpt]
    order = np.lexsort((hits["start"].to_numpy()[candidates], owner))
    candidates, owner = candidates[order], owner[order]
    is_first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    found: list[str | None] = [None] * pairs
    for number, text in zip(owner[is_first], hits["excerpt"].take(pa.array(candidates[is_first])), strict=True):
        found[number] = text.as_py()
    return found


def make(leaks: Leaks, ignored: pa.Table, index: NgramIndex, settings: dict[str, Any]) -> dict[str, str]:
    """The report's files by name: JSON with everything, and Markdown to read."""
    by_item: dict[int, list[int]] = {}
    for number, item in enumerate(leaks.item.tolist()):
        by_item.setdefault(item, []).append(number)
    sheet = {
        "settings": settings,
        "benchmarks": _benchmarks(index, set(by_item)),
        "items": [_item(index, item, leaks, numbers) for item, numbers in sorted(by_item.items())],
        "ignored_ngrams": [
            {"documents": row["documents"], "text": row["excerpt"], "items": _names(index, row["ngram"])}
            for row in ignored.sort_by([("documents", "descending"), ("ngram", "ascending")])
            .slice(0, LISTED)
            .to_pylist()
        ],
        "ignored_ngrams_total": ignored.num_rows,
    }
    return {f"{NAME}.json": json.dumps(sheet, indent=1, ensure_ascii=False) + "\n", f"{NAME}.md": _markdown(sheet)}


def _benchmarks(index: NgramIndex, leaked: set[int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    sizes = np.diff(index.item_offsets)
    for number, item in enumerate(index.items):
        counts = found.setdefault(item.name.split("/")[0], {"items": 0, "too_short": 0, "leaked": 0})
        counts["items"] += 1
        counts["too_short"] += int(sizes[number] == 0)
        counts["leaked"] += int(number in leaked)
    return found


def _item(index: NgramIndex, item: int, leaks: Leaks, numbers: list[int]) -> dict[str, Any]:
    most_first = sorted(numbers, key=lambda number: (-leaks.share[number], leaks.ids[leaks.document[number]].as_py()))
    documents = [
        {
            "id": leaks.ids[leaks.document[number]].as_py(),
            "ngrams": int(leaks.found[number]),
            "share": round(float(leaks.share[number]), 4),
            "span": [int(leaks.start[number]), int(leaks.end[number])],
            "text": leaks.excerpt[number],
        }
        for number in most_first[:LISTED]
    ]
    ngrams = int(index.item_offsets[item + 1] - index.item_offsets[item])
    return {"item": index.items[item].name, "ngrams": ngrams, "found_in": len(numbers), "documents": documents}


def _names(index: NgramIndex, ngram: int) -> list[str]:
    return [index.items[item].name for item in index.items_of(np.array([ngram]))[1][:LISTED]]


def _markdown(sheet: dict[str, Any]) -> str:
    lines = ["# Decontamination", "", "| benchmark | items | too short to look for | leaked |", "|---|--:|--:|--:|"]
    for name, counts in sheet["benchmarks"].items():
        lines.append(f"| {name} | {counts['items']:,} | {counts['too_short']:,} | {counts['leaked']:,} |")
    settings = ", ".join(f"{name} {value}" for name, value in sheet["settings"].items())
    lines += ["", f"Settings: {settings}. {sheet['ignored_ngrams_total']:,} n-grams in more documents were ignored."]
    for item in sheet["items"]:
        lines += ["", f"## {item['item']}", "", f"In {item['found_in']:,} documents; {item['ngrams']:,} n-grams."]
        for document in item["documents"]:
            text = " ".join((document["text"] or "").replace("`", "'").split())
            lines.append(
                f"- {document['id']}, characters {document['span'][0]:,} … {document['span'][1]:,}, "
                f"{document['share']:.0%} of it: `{text}`"
            )
    return "\n".join(lines) + "\n"
