"""Which tokens of packed rows are hidden, and what stands in their place: numpy, without a loop over rows or tokens.

Tokens are chosen by drawing one random number for each unit (a token, a word, or a span of either) and taking the units
with the lowest ones until the row's share is spent; a unit that does not fit whole is left out.
Devlin et al. 2018 (arXiv:1810.04805), section 3.1; whole words: its released code of May 2019; spans:
SpanBERT, Joshi et al. 2019 (arXiv:1907.10529), section 3.1.

Axes: B batch · L length · K places of a row that may be hidden.
"""

from typing import NamedTuple

import numpy as np

from pretrain.core.objective import Vocabulary

NEVER = np.float32(2)  # above every random number drawn


class Hidden(NamedTuple):
    """The chosen tokens of each row, in order; rows with fewer than K are filled with zeros.

    Attributes:
        positions_BK: int32, places in the row.
        targets_BK: int32, the tokens of the text there.
        weights_BK: float32, 1 where a token was chosen, 0 beyond.
        units_BK: int64, number of the unit that each belongs to.
    """

    positions_BK: np.ndarray
    targets_BK: np.ndarray
    weights_BK: np.ndarray
    units_BK: np.ndarray


def choose(
    tokens_BL: np.ndarray,
    segment_ids_BL: np.ndarray,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    rate: float,
    budget: int,
    whole_words: bool = False,
    span_p: float = 1.0,
    max_span: int = 10,
) -> Hidden:
    """Draws the tokens to hide; padding and special tokens never are.

    Args:
        rate: share of a row's tokens.
        budget: K, at least `rate` of a row.
        whole_words: words are hidden whole.
        span_p: chance that a span ends after a token (with `whole_words`, a word); 1 for no spans.
        max_span: longest span.
    """
    special = (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id)
    may_BL = (segment_ids_BL > 0) & (tokens_BL != special[0]) & (tokens_BL != special[1]) & (tokens_BL != special[2])
    scores_BL = rng.random(tokens_BL.shape, np.float32)
    units_BL = None
    if whole_words or span_p < 1:
        breaks_BL = _breaks(may_BL, segment_ids_BL)
        units_BL = _number(vocabulary.starts_word[tokens_BL] | breaks_BL if whole_words else np.ones_like(breaks_BL))
        if span_p < 1:
            units_BL = _spans(units_BL, breaks_BL, rng, span_p, max_span)
        scores_BL = np.take_along_axis(scores_BL, units_BL, axis=1)
    scores_BL[~may_BL] = NEVER
    most = min(budget, tokens_BL.shape[1] - 1)
    counts_B = np.minimum(np.rint(rate * may_BL.sum(axis=1)).astype(np.int64), most)
    first_left_B1 = np.take_along_axis(np.sort(scores_BL, axis=1), counts_B[:, None], axis=1)
    return _gather(scores_BL < first_left_B1, tokens_BL, units_BL, budget)


def replace(
    tokens_BL: np.ndarray,
    hidden: Hidden,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    mask: float,
    random: float,
    by_unit: bool = False,
) -> np.ndarray:
    """The tokens with those hidden replaced, int32 [batch, length].

    Args:
        mask, random: shares of the hidden tokens that become the mask, sentinel 0, or any token of the text's
            vocabulary; the others stay.
        by_unit: one draw decides for all tokens of a unit (SpanBERT).
    """
    draws_BK = rng.random(hidden.positions_BK.shape, np.float32)
    if by_unit:
        draws_BK = np.take_along_axis(rng.random(tokens_BL.shape, np.float32), hidden.units_BK, axis=1)
    special = sorted({vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id})
    others_BK = rng.integers(0, vocabulary.text_size - len(special), draws_BK.shape, np.int32)
    for id in special:  # counts on past it
        others_BK += others_BK >= id
    shown_BK = np.where(draws_BK < mask + random, others_BK, hidden.targets_BK)
    shown_BK = np.where(draws_BK < mask, vocabulary.sentinel(0), shown_BK)
    replaced_BL = tokens_BL.astype(np.int32)
    row, slot = np.nonzero(hidden.weights_BK)
    replaced_BL[row, hidden.positions_BK[row, slot]] = shown_BK[row, slot]
    return replaced_BL


def _breaks(may_BL: np.ndarray, segment_ids_BL: np.ndarray) -> np.ndarray:
    """Where no unit goes on from the token before: at starts of documents, at special tokens and after them."""
    breaks_BL = ~may_BL
    breaks_BL[:, 0] = True
    breaks_BL[:, 1:] |= (segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]) | ~may_BL[:, :-1]
    return breaks_BL


def _number(starts_BL: np.ndarray) -> np.ndarray:
    """Numbers 0, 1, ... of the units of each row, from where they start."""
    return np.cumsum(starts_BL, axis=1) - 1


def _spans(units_BL: np.ndarray, breaks_BL: np.ndarray, rng: np.random.Generator, p: float, longest: int) -> np.ndarray:
    """Units joined into spans of 1 to `longest` units, of geometric length, that do not cross a break."""
    rows = np.arange(len(units_BL))[:, None]
    uniform_BL = rng.random(units_BL.shape)
    lengths_BL = np.ceil(np.log1p(-uniform_BL * (1 - (1 - p) ** longest)) / np.log1p(-p)).astype(np.int64)
    ends_BL = np.cumsum(np.maximum(lengths_BL, 1), axis=1)
    starts_BL = np.zeros((len(units_BL), units_BL.shape[1] + 1), bool)  # by number of the unit
    starts_BL[rows, np.minimum(ends_BL, units_BL.shape[1])] = True
    new_BL = np.ones(units_BL.shape, bool)
    new_BL[:, 1:] = units_BL[:, 1:] != units_BL[:, :-1]
    return _number(breaks_BL | (new_BL & np.take_along_axis(starts_BL, units_BL, axis=1)))


def _gather(chosen_BL: np.ndarray, tokens_BL: np.ndarray, units_BL: np.ndarray | None, budget: int) -> Hidden:
    row, position = np.nonzero(chosen_BL)
    counts_B = np.bincount(row, minlength=len(chosen_BL))
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    shape = (len(chosen_BL), budget)
    positions_BK, targets_BK = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights_BK, units_BK = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    positions_BK[row, slot], targets_BK[row, slot], weights_BK[row, slot] = position, tokens_BL[row, position], 1
    units_BK[row, slot] = position if units_BL is None else units_BL[row, position]
    return Hidden(positions_BK, targets_BK, weights_BK, units_BK)
