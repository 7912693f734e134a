"""Which tokens are noise: T5's length arithmetic, its random spans for many pieces at once, and BART's infilling.

Raffel et al. 2020 (arXiv:1910.10683), section 3.1.4 and the released code: 15 % of a text in spans of 3 tokens on
average; Lewis et al. 2020 (arXiv:1910.13461), section 2.2. Axes as in `pieces`; S spans.

A row of one piece is corrupted as T5 does and filled to its last token. Further pieces in a row bring end tokens of
their own, for which the row then has fewer spans, each longer; the noise stays the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pretrain.objectives.pieces import Pieces, before_in_group, within

NO_LIMIT = 1 << 40


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much of a text is taken away, in spans of which length.

    Attributes:
        density: share of the tokens.
        mean_span: tokens of a span on average; infinity for one span, which is then at the end of the text.
        mode: number of the sentinel that stands before the inputs (UL2's mode tokens); None for none.
        ends: whether inputs and targets end with an end token (T5) beside those that the text has.
        whole: whether the targets are the whole text (BART), not the noise alone.
    """

    density: float
    mean_span: float
    mode: int | None = None
    ends: bool = True
    whole: bool = False

    @property
    def extra(self) -> tuple[int, int]:
        """Tokens that each piece has in inputs and targets beside text and one sentinel a span."""
        return int(self.ends) + (self.mode is not None), int(self.ends)

    def counts(self, tokens: int) -> tuple[int, int]:
        """Noise tokens and spans of a text, rounded as T5 does; at least one of each of a text of two tokens."""
        if tokens < 2:
            return 0, 0
        noise = min(max(round(tokens * self.density), 1), tokens - 1)
        return noise, max(round(noise / self.mean_span), 1)

    def sizes(self, tokens: int) -> tuple[int, int]:
        """Lengths of inputs and targets of a text of so many tokens."""
        noise, spans = self.counts(tokens)
        before, after = self.extra
        return tokens - noise + spans + before, tokens if self.whole else noise + spans + after


class Room(NamedTuple):
    """Tokens that a row holds: of inputs, of targets, and of both where they stand in one sequence."""

    inputs: int
    targets: int
    both: int = NO_LIMIT


def allot(
    pieces: Pieces, rows: int, noise: Sequence[Noise], kind_R: np.ndarray, room: Room
) -> tuple[Pieces, np.ndarray, np.ndarray]:
    """The pieces that are read, and the noise tokens and spans of each, int64.

    Where the pieces of a row need more than it holds, the shortest are left out, as is one of a single token.

    Args:
        pieces: of the rows.
        rows: number of rows.
        noise: kinds of noise.
        kind_R: int, the kind of each row.
        room: of a row.
    """
    lengths_P, rows_P = pieces.lengths_P, pieces.rows_P
    density_R, mean_R = (np.array([getattr(n, f) for n in noise])[kind_R] for f in ("density", "mean_span"))
    before_P, after_P = np.array([n.extra for n in noise]).T[:, kind_R[rows_P]]
    whole = noise[0].whole
    kept_P = lengths_P > (0 if whole else 1)
    while True:
        noise_P, spans_P = _spread(lengths_P * kept_P, rows_P, density_R, mean_R, (before_P, after_P), room, whole)
        kept_P &= whole | (spans_P > 0)
        inputs_P = lengths_P - noise_P + spans_P + before_P
        targets_P = lengths_P if whole else noise_P + spans_P + after_P
        inputs_R, targets_R, one_R = (np.bincount(rows_P, kept_P * x, rows) for x in (inputs_P, targets_P, 1))
        full_R = (inputs_R > room.inputs) | (targets_R > room.targets) | (inputs_R + targets_R - one_R > room.both)
        if not full_R.any():
            return pieces.keep(kept_P), noise_P[kept_P], spans_P[kept_P]
        order = np.lexsort((lengths_P, ~kept_P, rows_P))  # the shortest that is kept comes first in each row
        kept_P[order[np.searchsorted(rows_P, np.flatnonzero(full_R))]] = False


def _spread(lengths_P, rows_P, density_R, mean_R, extra, room: Room, whole: bool):
    """T5's numbers of a whole row, shared out by length; one span at least for a piece with noise."""
    rows = len(density_R)

    def of_row(values_P):
        return np.bincount(rows_P, values_P, rows).astype(np.int64)

    def shared(total_R, parts_P):
        """Whole numbers in proportion to `parts_P` that add up to `total_R`."""
        whole_P, start_P = np.maximum(of_row(parts_P), 1)[rows_P], before_in_group(parts_P, rows_P)
        return (start_P + parts_P) * total_R[rows_P] // whole_P - start_P * total_R[rows_P] // whole_P

    tokens_R = of_row(lengths_P)
    noise_R = np.clip(np.rint(tokens_R * density_R).astype(np.int64), 1, np.maximum(tokens_R - 1, 0))
    most_P = np.maximum(lengths_P - 1, 0)
    noise_P = np.clip(shared(noise_R * (tokens_R > 1), lengths_P), 0 if whole else np.minimum(most_P, 1), most_P)
    noisy_P = noise_P > 0
    shown_P = (lengths_P > 0) if whole else noisy_P
    noise_R, pieces_R, clean_R = of_row(noise_P), of_row(noisy_P), of_row(shown_P * (lengths_P - noise_P))
    before_R, after_R = (of_row(shown_P * each) for each in extra)
    space_R = room.inputs - clean_R - before_R
    if not whole:
        space_R = np.minimum(space_R, room.targets - noise_R - after_R)
        both_R = room.both - clean_R - before_R - noise_R - after_R + pieces_R
        space_R = np.minimum(space_R, both_R // 2)
    wanted_R = np.rint(noise_R / mean_R).astype(np.int64)
    spans_R = np.maximum(np.minimum(wanted_R, space_R), pieces_R)
    spans_P = noisy_P * (1 + shared(spans_R - pieces_R, noise_P))
    return noise_P, np.minimum(spans_P, np.minimum(noise_P, lengths_P - noise_P))


def chosen(totals_P: np.ndarray, counts_P: np.ndarray, rng: np.random.Generator, first: bool = False) -> np.ndarray:
    """Bool, flat: `counts_P` of the `totals_P` places of each piece at random, with `first` always the first place."""
    key_T = rng.random(int(totals_P.sum()))
    if first:
        key_T[(np.cumsum(totals_P) - totals_P)[totals_P > 0]] = 0
    order_T = np.argsort(np.repeat(np.arange(len(totals_P)), totals_P) + key_T, kind="stable")
    chosen_T = np.zeros(len(key_T), bool)
    chosen_T[order_T[within(totals_P) < np.repeat(counts_P, totals_P)]] = True
    return chosen_T


def spans_of(lengths_P: np.ndarray, noise_P: np.ndarray, spans_P: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """T5's random spans: bool, whether each token is noise, and int64, the number of its span in its piece; flat.

    Text and noise take turns, text first; all ways to cut them into so many parts are equally likely.
    """

    def parts(totals_P):
        starts = np.flatnonzero(chosen(totals_P, spans_P, rng, first=True))
        return np.diff(np.append(starts, totals_P.sum()))

    turns_S2 = np.stack([parts(lengths_P - noise_P), parts(noise_P)], axis=1)
    is_noise_T = np.repeat(np.tile([False, True], len(turns_S2)), turns_S2.reshape(-1))
    return is_noise_T, np.repeat(within(spans_P), turns_S2.sum(axis=1))


def infilling_of(lengths_P, noise_P, spans_P, rng) -> tuple[np.ndarray, np.ndarray]:
    """BART's infilling: for each place of the inputs, bool, whether it is a mask, and the token else; flat.

    Lengths of spans are Poisson numbers given their sum, that is, multinomial ones; a span may be empty. Masks are
    anywhere between the tokens that stay.
    """
    places_P = lengths_P - noise_P + spans_P
    is_mask_T = chosen(places_P, spans_P, rng)
    span_of_noise_T = np.floor(rng.random(int(noise_P.sum())) * np.repeat(spans_P, noise_P)).astype(np.int64)
    span_of_noise_T += np.repeat(np.cumsum(spans_P) - spans_P, noise_P)
    taken_T = np.ones(len(is_mask_T), np.int64)
    taken_T[is_mask_T] = np.bincount(span_of_noise_T, minlength=int(spans_P.sum()))
    return is_mask_T, np.cumsum(taken_T) - taken_T
