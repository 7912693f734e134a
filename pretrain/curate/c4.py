"""C4's rules: lines that are no sentences are taken out, then documents that have too little left or are no prose.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020), section 2.2,
with the rules that only the authors' code has: citation marks, longest word, policy lines.
"""

import dataclasses
import functools
import re

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core import storage
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import lines, marks
from pretrain.curate.checks import Checks, in_parts
from pretrain.curate.lines import Lines, to_numpy
from pretrain.curate.stages import replacements
from pretrain.curate.toxicity import word_list
from pretrain.curate.words import offsets, split_words

CITATION = r"\[\d*\]|\[edit\]|\[citation needed\]"
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LINE_RULES = ("kept", "no_terminal_punctuation", "few_words", "long_word", "javascript", "policy")


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class C4:
    """Map stage that takes lines out (edits, by rule) and rejects documents by the first rule they break.

    Lines are taken out if they do not end in . ! ? " or ' (or end in an ellipsis), or have few words, a very long word,
    "javascript" or a phrase about policies. Documents are rejected if a line that ends well speaks of "lorem ipsum" or
    has a curly bracket, if any of the bad words is in them, or if too few sentences are left.

    Attributes:
        terminal_punctuation: whether lines must end as said (FineWeb leaves that to a rule of its own).
        curly_brackets: whether a curly bracket rejects the document.
        min_words_per_line: words between white space.
        max_word_characters: of such a word.
        min_sentences: in the lines left.
        remove_citations: take [1], [edit] and [citation needed] out of the lines left.
        bad_words: a file of words and phrases, one a line, a star at the end for any ending; or a language, for our own
            list (see `toxicity`); empty for none.
    """

    terminal_punctuation: bool = True
    curly_brackets: bool = True
    min_words_per_line: int = 3
    max_word_characters: int = 1_000
    min_sentences: int = 5
    remove_citations: bool = True
    bad_words: str = "en"
    name: str = "c4"

    def __post_init__(self):
        check_fields(self)
        for rule in ("min_words_per_line", "max_word_characters", "min_sentences"):
            check(getattr(self, rule) >= 0, f"C4.{rule} must be at least 0, not {getattr(self, rule)}")
        if self.bad_words:
            bad_words(self.bad_words)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Decides about lines, then about documents; only documents that stay are edited."""
        return in_parts(self._decide, documents)

    def _decide(self, documents: pa.RecordBatch) -> pa.Table:
        texts, checks = documents["text"], Checks(documents["id"])
        split = lines.split_lines(texts)
        stripped = pc.utf8_trim_whitespace(split.strings)
        rule_L, lorem, curly = self._judge(stripped)
        checks.broken("lorem_ipsum", split.total(lorem) > 0, split.total(lorem), 0)
        checks.broken("curly_bracket", split.total(curly) > 0, split.total(curly), 0)
        if self.bad_words:
            found = to_numpy(pc.match_substring_regex(pc.utf8_lower(texts), bad_words(self.bad_words)))
            checks.broken("bad_words", found > 0, found, 0)
        kept = split.total(rule_L == 0)
        few = (kept < self.min_sentences) & ~checks.is_broken
        is_few_L = np.repeat(few, split.counts()) & (rule_L == 0)
        kept[few] += Lines(split.strings, split.starts_D1).total(self._more_sentences(stripped, is_few_L))[few]
        checks.at_least(self, "min_sentences", kept)
        is_left_L = np.repeat(~checks.is_broken, split.counts())
        edits = [self._cut_lines(documents["id"], split, np.where(is_left_L, rule_L, 0))]
        if self.remove_citations:
            edits.append(self._cut_citations(documents["id"], split, is_left_L & (rule_L == 0)))
        return pa.concat_tables([checks.rejected(), *edits])

    def _judge(self, stripped: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each line the rule that takes it out (an index into `LINE_RULES`), and what rejects its document."""
        rule_L, lorem, curly = np.ones((3, len(stripped)), np.int64)
        lorem[:] = curly[:] = 0
        shown = pc.replace_substring_regex(stripped, CITATION, "") if self.remove_citations else stripped
        row = np.arange(len(stripped))
        if self.terminal_punctuation:
            last = pc.utf8_slice_codeunits(shown, -1, None)
            ends_well = to_numpy(pc.is_in(last, pa.array(list(".?!\"'"), pa.large_string())))
            row = np.flatnonzero(ends_well & (1 - to_numpy(pc.ends_with(shown, "..."))))
        left, shown = stripped.take(pa.array(row)), shown.take(pa.array(row))
        words = pc.utf8_split_whitespace(left)
        lower = pc.utf8_lower(shown)
        longest = to_numpy(pc.utf8_length(left)) > self.max_word_characters
        longest[longest] = [
            max(map(len, line.split()), default=0) > self.max_word_characters
            for line in left.filter(pa.array(longest)).to_pylist()
        ]
        counts = np.where(to_numpy(pc.binary_length(left)) > 0, to_numpy(pc.list_value_length(words)), 0)
        has_lorem = to_numpy(pc.match_substring_regex(lower, "lorem ipsum"))
        has_javascript = to_numpy(pc.match_substring_regex(lower, "javascript"))
        has_policy = to_numpy(pc.match_substring_regex(lower, "|".join(POLICIES)))
        is_short = counts < self.min_words_per_line
        reads_on = ~longest & ~is_short
        lorem[row] = reads_on & has_lorem
        if self.curly_brackets:
            curly[row] = reads_on & (1 - has_javascript) & to_numpy(pc.match_substring_regex(shown, r"\{"))
        rule_L[row] = np.select([is_short, longest, has_javascript > 0, has_policy > 0], [2, 3, 4, 5], 0)
        return rule_L, lorem, curly

    def _more_sentences(self, stripped: pa.Array, is_counted_L: np.ndarray) -> np.ndarray:
        """How many sentences more than one the marked lines have; 0 for the others."""
        row = np.flatnonzero(is_counted_L)
        shown = stripped.take(pa.array(row))
        words = split_words(pc.replace_substring_regex(shown, CITATION, "") if self.remove_citations else shown)
        ends_V = to_numpy(pc.is_in(words.vocabulary, pa.array(list(marks.TERMINAL), pa.large_string())))
        is_mark_V = to_numpy(pc.match_substring_regex(words.vocabulary, r"^\p{P}+$")) & (1 - ends_V)
        place_W = np.flatnonzero(is_mark_V[words.ids_W] == 0)
        ends_W = ends_V[words.ids_W[place_W]]
        line_W = np.searchsorted(words.starts_D1, place_W, "right") - 1
        starts = (ends_W[:-1] == 1) & (ends_W[1:] == 0) & (line_W[:-1] == line_W[1:])
        more = np.zeros(len(stripped), np.int64)
        more[row] = np.bincount(line_W[1:][starts], minlength=len(row))
        return more

    def _cut_lines(self, ids: pa.Array, split: Lines, rule_L: np.ndarray) -> pa.Table:
        """Edits that take lines out, neighbours with one rule as one, each line with one of the line feeds around it.

        That is the one after it, but the one before it where no line is left behind it.
        """
        text_L, starts_L, ends_L = positions(split)
        is_kept_L = rule_L == 0
        kept_before_L1 = offsets(is_kept_L)
        is_tail_L = kept_before_L1[1:] == kept_before_L1[split.starts_D1[1:]][text_L]
        starts_L -= is_tail_L & (starts_L > 0)
        ends_L += ~is_tail_L
        changes = np.flatnonzero((np.diff(rule_L) != 0) | (np.diff(text_L) != 0)) + 1
        first = np.concatenate([[0], changes])[: len(rule_L)].astype(np.int64)
        last = np.append(first[1:], len(rule_L))[: len(first)] - 1
        is_cut = ~is_kept_L[first] & (ends_L[last] > starts_L[first])
        first, last = first[is_cut], last[is_cut]
        names = pa.array(LINE_RULES).take(pa.array(rule_L[first]))
        taken = ids.take(pa.array(text_L[first]))
        return replacements(taken, names, pa.array(starts_L[first]), pa.array(ends_L[last]))

    def _cut_citations(self, ids: pa.Array, split: Lines, is_left_L: np.ndarray) -> pa.Table:
        """Edits that take citation marks out of the marked lines."""
        row = np.flatnonzero(is_left_L)
        row = row[to_numpy(pc.match_substring_regex(split.strings.take(pa.array(row)), CITATION)) > 0]
        text_L, starts_L, _ = positions(split)
        found = [
            (text, start + match.start(), start + match.end())
            for text, start, line in zip(text_L[row], starts_L[row], split.strings.take(row).to_pylist(), strict=True)
            for match in re.finditer(CITATION, line, re.ASCII)
        ]
        text, start, end = np.array(found, np.int64).reshape(-1, 3).T
        return replacements(ids.take(pa.array(text)), "citation", pa.array(start), pa.array(end))


@functools.lru_cache(maxsize=8)
def bad_words(given: str) -> str:
    """A pattern (of RE2) that finds any word of a list in lower-case text, with nothing of a word on either side.

    Raises:
        UserError: there is no such file or list.
    """
    is_language = re.fullmatch("[a-z]{2,3}", given) is not None
    check(is_language or storage.Path(given).is_file(), f"C4.bad_words: there is no file {given}")
    listed = word_list(given) if is_language else word_list("", given)
    check(bool(listed), f"C4.bad_words: there is no list for the language {given!r}; name a file")
    words = [
        marks.literal(word.removesuffix("*")) + (r"[\p{L}\p{N}_]*" if word.endswith("*") else "") for word in listed
    ]
    return r"(?:^|[^\p{L}\p{N}_])(?:" + "|".join(words) + r")(?:$|[^\p{L}\p{N}_])"


def positions(split: Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each line its text, and the characters where it starts and ends there, without the line feed."""
    text_L = np.repeat(np.arange(len(split.starts_D1) - 1), split.counts())
    lengths_L = split.characters()
    starts_L = offsets(lengths_L + 1)[:-1]
    starts_L -= starts_L[split.starts_D1[:-1][text_L]]
    return text_L, starts_L, starts_L + lengths_L
