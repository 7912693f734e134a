"""Personal data and secrets: e-mail, IP addresses, phone and card numbers, keys and tokens, masked where they stand.

Each kind has three sieves, from cheap to exact: a pattern that Arrow runs over whole batches, then over the lines of
what is left, and that most text fails; Python patterns that find candidates in a line; and a check of each candidate
that knows the format (public address ranges, the numbering plans of libphonenumber, Luhn's sum and the issuers'
prefixes, entropy). What is found is replaced by a placeholder that names the kind, and recorded as an edit.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import pii_numbers, pii_secrets
from pretrain.curate.stages import DECISIONS, replacements

Span = tuple[int, int]


class Kind(NamedTuple):
    """One kind of personal data.

    Attributes:
        prefilter: RE2 pattern without which a line has none of it.
        find: the spans in a line, in order and apart from each other.
        placeholder: what is put in their place.
        is_block: it goes over several lines, so that `find` takes whole texts.
    """

    prefilter: str
    find: Callable[[str], Iterator[Span]]
    placeholder: str
    is_block: bool = False


# In the order of precedence: where two kinds overlap, the first has it.
KINDS = {
    "private_key": Kind(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY", pii_secrets.find_private_keys, "<PRIVATE_KEY>", True),
    "secret": Kind(pii_secrets.PREFILTER, pii_secrets.find_secrets, "<SECRET>"),
    "email": Kind(pii_numbers.EMAIL_PREFILTER, pii_numbers.find_emails, "<EMAIL_ADDRESS>"),
    "card": Kind(pii_numbers.CARD_PREFILTER, pii_numbers.find_cards, "<CARD_NUMBER>"),
    "ip": Kind(pii_numbers.IP_PREFILTER, pii_numbers.find_ips, "<IP_ADDRESS>"),
    "phone": Kind(pii_numbers.PHONE_PREFILTER, pii_numbers.find_phones, "<PHONE_NUMBER>"),
}


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Pii:
    """Map stage that masks personal data by placeholders; it rejects nothing.

    Attributes:
        kinds: of "private_key", "secret", "email", "card", "ip", "phone".
        phone_regions: countries (ISO 3166-1) whose national numbers are looked for; numbers that start with + are found
            for all countries.
        private_ips: mask also addresses that no one on the internet can be reached by (private, reserved, local).
    """

    kinds: Sequence[str] = tuple(KINDS)
    phone_regions: Sequence[str] = ("US", "GB")
    private_ips: bool = False
    name: str = "pii"

    def __post_init__(self):
        check_fields(self)
        unknown = sorted(set(self.kinds) - set(KINDS))
        check(not unknown, f"Pii.kinds: {unknown} unknown; there are {' '.join(KINDS)}")
        pii_numbers.check_regions(self.phone_regions)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Replacements of what was found, by rules named like the kinds."""
        taken: dict[int, list[Span]] = {}
        decisions = [DECISIONS.empty_table()]
        for kind in (kind for kind in KINDS if kind in self.kinds):
            rows, starts, ends = [], [], []
            for row, start, end in self._find(kind, documents["text"]):
                others = taken.setdefault(row, [])
                if all(end <= other[0] or other[1] <= start for other in others):
                    others.append((start, end))
                    for column, value in zip((rows, starts, ends), (row, start, end), strict=True):
                        column.append(value)
            ids = documents["id"].take(pa.array(rows, pa.int64()))
            spans = (pa.array(starts, pa.int64()), pa.array(ends, pa.int64()))
            decisions.append(replacements(ids, kind, *spans, KINDS[kind].placeholder))
        return pa.concat_tables(decisions)

    def _find(self, kind: str, texts: pa.Array) -> Iterator[tuple[int, int, int]]:
        """(row, start, end) of one kind, from the texts and then the lines that pass its prefilter."""
        prefilter, find, _, is_block = KINDS[kind]
        if kind == "phone":
            find = functools.partial(find, regions=tuple(self.phone_regions))
        if kind == "ip":
            find = functools.partial(find, private=self.private_ips)
        rows = np.flatnonzero(pc.match_substring_regex(texts, prefilter))
        if is_block:
            for row in rows:
                yield from ((int(row), start, end) for start, end in find(texts[row].as_py()))
            return
        for row, offset, line in _matching_lines(texts, rows, prefilter):
            yield from ((row, offset + start, offset + end) for start, end in find(line))


def _matching_lines(texts: pa.Array, rows: np.ndarray, pattern: str) -> Iterator[tuple[int, int, str]]:
    """(row, offset in characters, line) of the lines that match, of some rows."""
    lines = pc.split_pattern(texts.take(pa.array(rows)), "\n")
    flat = lines.flatten()
    hits = np.flatnonzero(pc.match_substring_regex(flat, pattern))
    firsts = np.asarray(lines.offsets, np.int64)[:-1] - (lines.offsets[0].as_py() if len(rows) else 0)
    lengths = np.asarray(pc.utf8_length(flat), np.int64) + 1
    before = np.concatenate([[0], np.cumsum(lengths)])
    owners = np.searchsorted(firsts, hits, side="right") - 1
    offsets = before[hits] - before[firsts[owners]]
    return zip(rows[owners].tolist(), offsets.tolist(), flat.take(pa.array(hits)).to_pylist(), strict=True)
