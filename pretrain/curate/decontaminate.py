"""Decontamination: finds benchmark items in the corpus, drops or cuts them out, and reports every leak.

Brown et al., "Language models are few-shot learners" (2020), appendix C: an item is found by any of its word 13-grams
(of items with 8 to 12 words, by all of it), n-grams in more than 10 documents are no sign of a leak and are ignored.
With `ngram=8, min_ratio=0.7` by the share of its 8-grams that a document has, as PaLM (Chowdhery et al., 2022) counts.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core import storage
from pretrain.core.errors import RunError, check
from pretrain.core.fields import check_fields
from pretrain.curate import leak_report
from pretrain.curate.benchmark_files import BenchmarkFields, Item, load_items
from pretrain.curate.hashing import KEY_BYTES, from_binary, mix, to_binary
from pretrain.curate.ngram_index import NgramIndex, letter_positions, letters_of
from pretrain.curate.stages import DECISIONS, KeyedStage, rejections, replacements

ACTIONS = ("drop", "cut")
EXCERPT_MARGIN, EXCERPT_CHARACTERS = 80, 300  # on both sides of a leak, and of it, for the report
HITS = {
    "id": pa.string(),
    "ngram": pa.int64(),  # its number in the index
    "start": pa.int64(),  # characters of the document
    "end": pa.int64(),
    "characters": pa.int64(),  # of the document
    "excerpt": pa.string(),  # text around; only of the first of neighbouring n-grams
}
EVIDENCE = pa.schema({"key": pa.binary(KEY_BYTES), **HITS})
GROUPS = pa.schema({**HITS, "documents": pa.int64()})


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Fitted stage: reads the benchmarks and becomes the keyed stage that looks for them.

    Writes decontamination_report.{json,md} into the output folder. Where `FindLeaks` rejects, `value` is the share of
    the item's n-grams that the document has and `duplicate_of` the item, "benchmark/id".

    Attributes:
        against: JSONL files of benchmark items: a path, glob or folder, or several.
        fields: which fields of their records are what.
        ngram: words in an n-gram.
        min_words: texts of an item with fewer words than an n-gram count whole, down to this many; what is shorter
            is not looked for and listed in the report.
        min_ratio: share of an item's n-grams that a document must have; 0: one is enough.
        max_documents: n-grams in more documents than this are ignored.
        action: "drop" the document, or "cut" the n-grams with `margin` characters on both sides out of it; a document
            of which less than `margin` characters would be left is dropped.
        margin: characters.
    """

    against: str | Sequence[str]
    fields: BenchmarkFields = dataclasses.field(default_factory=BenchmarkFields)
    ngram: int = 13
    min_words: int = 8
    min_ratio: float = 0.0
    max_documents: int = 10
    action: str = "drop"
    margin: int = 200
    name: str = "decontaminate"

    def __post_init__(self):
        check_fields(self)
        check(bool(self.against), "Decontaminate.against names no benchmark; give --decontaminate_against=…")
        object.__setattr__(self, "against", (self.against,) if isinstance(self.against, str) else tuple(self.against))
        limits = 1 <= self.min_words <= self.ngram
        check(limits, f"Decontaminate.min_words ({self.min_words}) must lie in 1 … ngram ({self.ngram})")
        check(0 <= self.min_ratio <= 1, f"Decontaminate.min_ratio must lie in 0 … 1, not {self.min_ratio}")
        check(self.max_documents >= 1, f"Decontaminate.max_documents must be at least 1, not {self.max_documents}")
        check(self.action in ACTIONS, f"Decontaminate.action must be drop or cut, not {self.action!r}")
        check(self.margin >= 0, f"Decontaminate.margin must not be negative: {self.margin}")

    @property
    def reference(self) -> dict[str, str]:
        """The benchmark files, by number."""
        return {str(number): pattern for number, pattern in enumerate(self.against)}

    def fit(self, reference: Iterable | None = None) -> KeyedStage:
        """Reads the benchmark files itself, because their records have layouts of their own.

        Raises:
            UserError: a file is missing, or a record in it cannot be read.
        """
        items = load_items(self.against, self.fields)
        return FindLeaks(self, _fingerprint(items), self.name)


@dataclasses.dataclass(frozen=True)
class FindLeaks:
    """Keyed stage that rejects or edits documents with benchmark items in them.

    Workers read the benchmarks themselves, once each: an index is too large to be sent with every task.

    Attributes:
        config: what to look for, and what to do.
        fingerprint: of the items.
    """

    config: Decontaminate
    fingerprint: str
    name: str

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """A row an n-gram that stands in a document."""
        texts = documents["text"].to_pylist()
        index = _index(self)
        matches = index.find(letters_of(texts))
        starts, ends, characters, excerpts = [], [], [], []
        for text in np.unique(matches.text):
            found = matches.text == text
            spans = _character_spans(texts[text], matches.start[found], matches.end[found])
            starts.append(spans[0])
            ends.append(spans[1])
            characters.append(np.full(found.sum(), len(texts[text])))
            excerpts += _excerpts(texts[text], *spans)
        hashes = index.hashes[matches.ngram]
        columns = {
            "key": to_binary(np.stack([hashes, mix(~hashes)], axis=1).view(np.uint8).reshape(-1, KEY_BYTES)),
            "id": documents["id"].take(pa.array(matches.text)),
            "ngram": matches.ngram,
            "start": np.concatenate([*starts, np.zeros(0, np.int64)]),
            "end": np.concatenate([*ends, np.zeros(0, np.int64)]),
            "characters": np.concatenate([*characters, np.zeros(0, np.int64)]),
            "excerpt": pa.array(excerpts, pa.string()),
        }
        return pa.table(columns, schema=EVIDENCE)

    def group(self, evidence: pa.Table) -> pa.Table:
        """All rows with the number of documents that have the n-gram; of an ignored n-gram the first row alone."""
        keys = from_binary(evidence["key"]).view(f"V{KEY_BYTES}")[:, 0]
        is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        ids = evidence["id"].combine_chunks().dictionary_encode().indices.to_numpy()
        is_document = is_first | np.append(True, ids[1:] != ids[:-1])[: len(ids)]
        ngram = np.cumsum(is_first) - 1
        documents = np.bincount(ngram[is_document], minlength=1)[ngram]
        groups = evidence.drop_columns(["key"]).append_column("documents", pa.array(documents, pa.int64()))
        return groups.filter(pa.array(is_first | (documents <= self.config.max_documents))).cast(GROUPS)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Drops or cuts the documents that have enough of an item."""
        hits, _ = self._divide(groups)
        leaks = leak_report.find_leaks(hits, _index(self), self.config.min_ratio)
        if not len(leaks.document):
            return DECISIONS.empty_table()
        order = np.lexsort((leaks.item, -leaks.share, leaks.document))
        document = leaks.document[order]
        worst = order[np.append(True, document[1:] != document[:-1])]
        cuts = DECISIONS.empty_table()
        if self.config.action == "cut":
            cuts, is_left = self._cut(hits, leaks)
            worst = worst[~is_left[leaks.document[worst]]]
        names = pa.array([_index(self).items[item].name for item in leaks.item[worst]], pa.string())
        ids = leaks.ids.take(pa.array(leaks.document[worst]))
        dropped = rejections(ids, "leaked_item", pa.array(leaks.share[worst]), self.config.min_ratio, names)
        return pa.concat_tables([dropped, cuts])

    def _cut(self, hits: pa.Table, leaks: leak_report.Leaks) -> tuple[pa.Table, np.ndarray]:
        """Replacements for the spans of leaks, and of each of `leaks.ids` whether enough of it is left."""
        hits = hits.take(pa.array(leaks.rows))
        id_codes = pc.index_in(hits["id"], value_set=leaks.ids).to_numpy()
        size = hits["characters"].to_numpy()
        start = np.maximum(hits["start"].to_numpy() - self.config.margin, 0)
        end = np.minimum(hits["end"].to_numpy() + self.config.margin, size)
        base = np.cumsum(np.append(0, np.where(np.diff(id_codes) != 0, size[:-1] + 1, 0)))  # documents side by side
        reach = np.maximum.accumulate(end + base)
        is_first = np.append(True, start[1:] + base[1:] > reach[:-1])
        last = np.append(np.flatnonzero(is_first)[1:], len(hits)) - 1
        document, start, end = id_codes[is_first], start[is_first], reach[last] - base[last]
        left = np.zeros(len(leaks.ids), np.int64)
        left[id_codes] = size
        np.subtract.at(left, document, end - start)
        is_left = left >= self.config.margin
        kept = is_left[document]
        ids = leaks.ids.take(pa.array(document[kept]))
        return replacements(ids, "leaked_item", pa.array(start[kept]), pa.array(end[kept])), is_left

    def report(self, groups: pa.Table) -> dict[str, str]:
        """The report's files, by name."""
        names = ("ngram", "min_words", "min_ratio", "max_documents", "action")
        hits, ignored = self._divide(groups)
        leaks = leak_report.find_leaks(hits, _index(self), self.config.min_ratio)
        return leak_report.make(leaks, ignored, _index(self), {name: getattr(self.config, name) for name in names})

    def _divide(self, groups: pa.Table) -> tuple[pa.Table, pa.Table]:
        """What counts, and the n-grams that are too frequent to count."""
        counts = pc.less_equal(groups["documents"], self.config.max_documents)
        return groups.filter(counts), groups.filter(pc.invert(counts))


@functools.lru_cache(1)
def _index(stage: FindLeaks) -> NgramIndex:
    items = load_items(stage.config.against, stage.config.fields)
    if _fingerprint(items) != stage.fingerprint:
        raise RunError(f"the benchmark files {stage.config.against} changed while this run read them; run it again")
    return NgramIndex(items, stage.config.ngram, stage.config.min_words)


def _fingerprint(items: Sequence[Item]) -> str:
    return storage.fingerprint([list(item) for item in items])


def _character_spans(text: str, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans in bytes of the text's letters as spans in its characters."""
    positions = letter_positions(text)
    return positions[start], positions[end - 1] + 1


def _excerpts(text: str, start: np.ndarray, end: np.ndarray) -> list[str | None]:
    """Text around each span that does not overlap those before it, None for others. Spans are sorted by start."""
    reach = np.maximum.accumulate(end)
    is_first = np.append(True, start[1:] > reach[:-1])
    last = np.append(np.flatnonzero(is_first)[1:], len(start)) - 1
    excerpts: list[str | None] = [None] * len(start)
    for row, stop in zip(np.flatnonzero(is_first).tolist(), reach[last].tolist(), strict=True):
        stop = min(stop, start[row] + EXCERPT_CHARACTERS)
        excerpts[row] = text[max(0, start[row] - EXCERPT_MARGIN) : stop + EXCERPT_MARGIN]
    return excerpts
