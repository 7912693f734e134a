"""Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): a causal model learns to write what two texts enclose.

A part of the documents is cut in three at random and rearranged, with sentinels in front of the parts:
    PSM  <prefix> prefix <suffix> suffix <middle> middle <eos>
    SPM  <prefix> <suffix> suffix <middle> prefix middle <eos>     (their variant 2, which shares its form with PSM)
Cuts are between tokens. The sentinels have no loss: they are given, never written. Axes: B batch · L length · P pieces
· T all their tokens.
"""

import dataclasses

import gin
import numpy as np

from pretrain.core.batch import Batch
from pretrain.core.errors import check
from pretrain.objectives.causal import Causal
from pretrain.objectives.pieces import Pieces, put_together, take_apart, within

ROOM = 4  # tokens that a rearranged piece has more: three sentinels, and the end of a piece that goes on
PREFIX, SUFFIX, MIDDLE = range(3)  # numbers of the sentinels


@gin.configurable
@dataclasses.dataclass(frozen=True)
class FillInTheMiddle(Causal):
    """Next-token prediction on documents of which a part is rearranged.

    Attributes:
        rate: part of the documents that is rearranged.
        spm_rate: part of these in the order suffix, prefix, middle.
        longest_middle: tokens; middles have 1 to so many, all lengths alike, anywhere in the text. None: any two cuts.
        middle_weight: in the loss, of a middle's tokens and of the end behind it; all others have 1.
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    longest_middle: int | None = None
    middle_weight: float = 1.0

    sentinels = 3
    random_finish = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("rate", "spm_rate"):
            check(0 <= getattr(self, name) <= 1, f"FillInTheMiddle.{name} must be in [0, 1], got {getattr(self, name)}")
        longest = self.longest_middle
        check(longest is None or longest >= 1, f"FillInTheMiddle.longest_middle must be None or >= 1, got {longest}")
        check(self.middle_weight > 0, f"FillInTheMiddle.middle_weight must be > 0, got {self.middle_weight}")

    def prepare(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Leaves room for sentinels after each piece; `finish` fills it, or takes it away."""
        del rng
        return {"tokens": np.append(record["tokens"], np.full(ROOM, self.vocabulary.pad_id, np.int32))}

    def prepared_length(self, lengths: np.ndarray) -> np.ndarray:
        return lengths + ROOM

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Rearranges pieces, then as `Causal.finish`."""
        shape = packed["tokens"].shape
        pieces = take_apart(packed["tokens"], packed["segment_ids"])
        filled_P = pieces.lengths_P - ROOM
        text_T = within(pieces.lengths_P) < np.repeat(filled_P, pieces.lengths_P)
        text = Pieces(pieces.tokens_T[text_T], filled_P, *pieces[2:])
        changed, weights_T = self.rearranged(text, rng)
        rows = put_together(changed, shape)
        starts_BL = (rows["positions"] == 0) & (rows["segment_ids"] > 0)
        rows["first_inputs"] = np.zeros(shape, np.int32)
        rows["first_inputs"][starts_BL] = packed["first_inputs"][
            (packed["positions"] == 0) & (packed["segment_ids"] > 0)
        ]
        rows |= {name: array for name, array in packed.items() if name == "source_weights"}
        batch = super().finish(rows, rng)
        marks = self.vocabulary.sentinel(np.array([PREFIX, SUFFIX, MIDDLE]))
        batch["loss_weights"] *= ~np.isin(batch["targets"], marks)
        batch["loss_weights"][batch["segment_ids"] > 0] *= weights_T
        return batch

    def rearranged(self, pieces: Pieces, rng: np.random.Generator) -> tuple[Pieces, np.ndarray]:
        """Pieces of which the share `rate` is cut and marked, and ends with the end token; weights of their tokens."""
        count, eos = len(pieces.lengths_P), self.vocabulary.eos_id
        draws_P4 = rng.random((count, 4))
        is_cut_P, is_spm_P = draws_P4[:, 0] < self.rate, draws_P4[:, 1] < self.spm_rate
        ends_P = pieces.starts_P + pieces.lengths_P
        has_end_P = (pieces.tokens_T[ends_P - 1] == eos) if count else np.zeros(0, bool)
        body_P = pieces.lengths_P - has_end_P
        cuts_P2 = self._cuts(body_P, draws_P4[:, 2:])
        part_P3 = np.diff(cuts_P2, axis=1, prepend=0, append=body_P[:, None])  # prefix, middle, suffix
        lengths_P = np.where(is_cut_P, body_P + ROOM, pieces.lengths_P)
        # Which place of the text stands at each place of the result; sentinels and ends are put in afterwards.
        place_T, starts_P = within(lengths_P), np.cumsum(lengths_P) - lengths_P
        prefix_P, middle_P, suffix_P = part_P3.T
        first_P = np.where(is_spm_P, 2, 1)  # places in front of the first part of text
        second_P = first_P + np.where(is_spm_P, suffix_P, prefix_P) + 1  # where the second one begins
        third_P = second_P + np.where(is_spm_P, prefix_P, suffix_P) + ~is_spm_P
        moves_P3 = np.stack([  # how far each part was moved
            np.where(is_spm_P, prefix_P + middle_P, 0) - first_P,
            np.where(is_spm_P, 0, prefix_P + middle_P) - second_P,
            prefix_P - third_P,
        ])  # fmt: skip

        def each(values_P):
            return np.repeat(values_P, lengths_P)

        part_T = (place_T >= each(second_P)).astype(int) + (place_T >= each(third_P))
        moved_T = np.where(each(is_cut_P), np.choose(part_T, [each(move) for move in moves_P3]), 0)
        source_T = each(pieces.starts_P) + np.clip(place_T + moved_T, 0, each(pieces.lengths_P - 1))
        tokens_T = pieces.tokens_T[source_T]
        mark = self.vocabulary.sentinel
        for token, where_P in (
            (mark(PREFIX), np.zeros(count, np.int64)),
            (mark(SUFFIX), np.where(is_spm_P, 1, second_P - 1)),
            (mark(MIDDLE), np.where(is_spm_P, second_P, third_P) - 1),
            (eos, lengths_P - 1),
        ):
            tokens_T[(starts_P + where_P)[is_cut_P]] = token
        weights_T = np.where(each(is_cut_P) & (part_T == 2), self.middle_weight, 1.0).astype(np.float32)
        return Pieces(tokens_T, lengths_P, *pieces[2:]), weights_T

    def _cuts(self, lengths_P: np.ndarray, draws_P2: np.ndarray) -> np.ndarray:
        """Where the middle of each text begins and ends, int64 [pieces, 2], by two draws from [0, 1)."""
        if self.longest_middle is None:
            return np.sort(np.floor(draws_P2 * (lengths_P[:, None] + 1)).astype(np.int64), axis=1)
        middle_P = np.minimum(np.floor(draws_P2[:, 0] * self.longest_middle).astype(np.int64) + 1, lengths_P)
        start_P = np.floor(draws_P2[:, 1] * (lengths_P - middle_P + 1)).astype(np.int64)
        return np.stack([start_P, start_P + middle_P], axis=1)
