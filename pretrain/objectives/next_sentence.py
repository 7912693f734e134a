"""BERT's pretraining: masked tokens, and whether the second part of a text follows the first (Devlin et al. 2018).

Each packed piece of a document becomes BOS, first part, EOS, second part with token types 0 and 1. Pieces of like
length are brought together two by two; both are cut so that their second parts are equally long, and with a chance of
one half these change places. So lengths and ends of a piece say nothing on the answer, rows stay full, and each token
of the corpus is still seen once an epoch. A piece that is left alone has no answer; its tokens are masked like
others.

Axes: B batch · L length · S pieces · T tokens of pieces · P answers a row may hold.
"""

import dataclasses
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.losses import cross_entropy, take_places, weighted_sum
from pretrain.objectives.masked import Masked, masked_loss

ADDED = 2  # tokens that each piece gets: BOS, and EOS between the parts
SHORTEST = 4  # tokens of a piece that can be cut: those, and one in each part


class Pairing(NamedTuple):
    """What became of each piece.

    Attributes:
        second_S: int64, tokens of the second part.
        donor_S: int64, the piece that the second part is taken from; its own number where it stays.
        scored_S: bool, whether there is another piece that it could have been taken from.
    """

    second_S: np.ndarray
    donor_S: np.ndarray
    scored_S: np.ndarray


@gin.configurable
@dataclasses.dataclass(frozen=True)
class NextSentence(Masked):
    """`Masked`, and whether the two parts of each piece belong together: 0 where they do, 1 where they do not."""

    model_needs = ModelNeeds(architectures=("encoder",), heads=("masked", "pair"), chunkable=False)

    def prepare(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """BOS in front, and room for an EOS between the parts."""
        del rng
        ids = self.vocabulary
        return {"tokens": np.concatenate([[ids.bos_id], record["tokens"], [ids.eos_id]]).astype(np.int32)}

    def prepared_length(self, lengths: np.ndarray) -> np.ndarray:
        return lengths + ADDED

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Cuts pieces in two, changes second parts, hides tokens.

        Args:
            packed: `tokens`, `segment_ids`, `positions`, int32 [rows, length], each piece as `prepare` makes it.
            rng: draws everything.
        """
        tokens_BL, positions_BL = packed["tokens"], packed["positions"]
        tokens_T, place_T = tokens_BL[packed["segment_ids"] > 0], positions_BL[packed["segment_ids"] > 0]
        starts_S = np.flatnonzero(place_T == 0)
        lengths_S = np.diff(starts_S, append=len(tokens_T))
        ended_S = tokens_T[starts_S + lengths_S - ADDED] == self.vocabulary.eos_id
        pairing = pair(lengths_S, ended_S, rng)
        cut_S = lengths_S - pairing.second_S  # where the second part begins
        source_T = np.arange(len(tokens_T))
        cut_T, length_T = np.repeat(cut_S, lengths_S), np.repeat(lengths_S, lengths_S)
        donor_end_T = np.repeat((starts_S + lengths_S)[pairing.donor_S], lengths_S) - (ADDED - 1)
        source_T = np.where(place_T < cut_T, source_T, donor_end_T - (length_T - place_T))
        shown_T = np.where(place_T == cut_T - 1, self.vocabulary.eos_id, tokens_T[source_T])
        shown_BL, types_BL = np.zeros_like(tokens_BL), np.zeros(tokens_BL.shape, np.int32)
        shown_BL[packed["segment_ids"] > 0], types_BL[packed["segment_ids"] > 0] = shown_T, place_T >= cut_T
        batch = self.hide(shown_BL, packed["segment_ids"], positions_BL, rng)
        return batch | {"types": types_BL, **self._answers(packed, pairing)}

    def _answers(self, packed: Batch, pairing: Pairing) -> Batch:
        """Where the scored pieces start, and whether their second parts were changed, row by row."""
        row_S, start_S = np.nonzero((packed["positions"] == 0) & (packed["segment_ids"] > 0))
        row_P, kept = row_S[pairing.scored_S], np.flatnonzero(pairing.scored_S)
        slot_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
        shape = len(packed["tokens"]), self._answers_per_row(packed["tokens"].shape[1])
        answers = {name: np.zeros(shape, np.int32) for name in ("pair_positions", "pair_targets")}
        answers["pair_weights"] = np.zeros(shape, np.float32)
        changed_S = pairing.donor_S != np.arange(len(row_S))
        for name, values in (("positions", start_S[kept]), ("targets", changed_S[kept]), ("weights", 1)):
            answers[f"pair_{name}"][row_P, slot_P] = values
        return answers

    def _answers_per_row(self, length: int) -> int:
        return max(1, length // SHORTEST)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        spec = super().batch_spec(batch_size, length)
        shape, axes = (batch_size, self._answers_per_row(length)), ("batch", None)
        spec |= {name: ArraySpec(shape, "int32", axes) for name in ("pair_positions", "pair_targets")}
        return spec | {"types": spec["tokens"], "pair_weights": ArraySpec(shape, "float32", axes)}

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        check(model.type_embedding is not None, "NextSentence needs TransformerConfig.token_types = 2")
        sequence = batch["tokens"], batch["segment_ids"], batch["positions"]
        output = model(*sequence, causal=False, types_BL=batch["types"])
        places = {"masked": batch["target_positions"], "pair": batch["pair_positions"]}
        return output._replace(hidden={name: take_places(output.hidden, where) for name, where in places.items()})

    def head(self, model, hidden: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"masked": model.masked_logits(hidden["masked"]), "pair": model.pair_head(hidden["pair"])}

    def loss(self, logits: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        terms, metrics = masked_loss(logits["masked"], batch, "masked")
        weights_BP, targets_BP = batch["pair_weights"], batch["pair_targets"]
        nll_BP, _ = cross_entropy(logits["pair"], targets_BP)
        hits_BP = (jnp.argmax(logits["pair"], -1) == targets_BP).astype(jnp.float32)
        weight = jnp.sum(weights_BP)
        terms["next_sentence"] = Term(weighted_sum(nll_BP, weights_BP), weight)
        metrics["next_sentence_accuracy"] = (weighted_sum(hits_BP, weights_BP), weight)
        return terms, metrics


def pair(lengths_S: np.ndarray, ended_S: np.ndarray, rng: np.random.Generator) -> Pairing:
    """Brings pieces of like length together, two by two, and changes the second parts of half of them.

    Args:
        lengths_S: tokens of each piece, with those added.
        ended_S: whether a piece ends where its document does; those that do and those that do not are kept apart.
        rng: draws where to cut (between a quarter and three quarters of the shorter piece), and whether to change.
    """
    numbers_S, size = np.arange(len(lengths_S)), lengths_S - ADDED
    order = np.lexsort((rng.random(len(numbers_S)), lengths_S, ended_S))
    order = order[lengths_S[order] >= SHORTEST]
    of_kind = [order[ended_S[order] == kind] for kind in (False, True)]
    first = np.concatenate([kind[: len(kind) // 2 * 2 : 2] for kind in of_kind])
    second = np.concatenate([kind[1::2] for kind in of_kind])
    partner_S = numbers_S.copy()
    partner_S[first], partner_S[second] = second, first
    leader_S = np.minimum(partner_S, numbers_S)  # both of a pair use what was drawn for one
    shorter_S = np.minimum(size, size[partner_S])
    second_S = np.rint(rng.uniform(0.25, 0.75, len(numbers_S))[leader_S] * shorter_S).astype(np.int64)
    second_S = np.minimum(np.maximum(second_S, 1), np.maximum(shorter_S - 1, 0))
    changes_S = rng.random(len(numbers_S))[leader_S] < 0.5
    return Pairing(second_S, np.where(changes_S, partner_S, numbers_S), partner_S != numbers_S)
