"""Held-out masked tokens: what a trained model fills in rightly, beside a unigram and a two-sided n-gram model.

    python benchmarks/masked_baselines.py runs/masked_0 runs/masked_1

Each folder holds a finished run of gin_configs/runs/masked_quickstart.gin. All are asked for the same tokens: the
hidden ones of the validation split that are shown as the mask. The n-gram model counts, over the whole train split,
which token stood between the two before and the two after, and backs off to fewer neighbours where it has not seen
these at least `least` times (or one is hidden itself); the best `least` of 1, 2 and 4 is taken, on the very tokens
that are asked for. It is asked once more with one neighbour on each side, and once with all neighbours uncovered,
which the model never sees.
"""

import dataclasses
import sys

import jax
import numpy as np

from pretrain import Experiment
from pretrain.data.documents import stored_tokens

# Neighbours by their distance, the most telling first.
CONTEXTS = [(-2, -1, 1, 2), (-2, -1, 1), (-1, 1, 2), (-1, 1), (-2, -1), (1, 2), (-1,), (1,), ()]
NEAREST = [(-1, 1), (-1,), (1,), ()]
OUTSIDE = 0  # pad: what stands beyond a document
LEAST = (1, 2, 4)


def neighbours(tokens_T: np.ndarray, documents_T: np.ndarray, places_P: np.ndarray, distance: int) -> np.ndarray:
    """The token at a distance from each place, `OUTSIDE` beyond its document."""
    there_P = np.clip(places_P + distance, 0, len(tokens_T) - 1)
    inside_P = (documents_T[there_P] == documents_T[places_P]) & (there_P == places_P + distance)
    return np.where(inside_P, tokens_T[there_P], OUTSIDE)


def keys(tokens_T, documents_T, places_P, context: tuple[int, ...], size: int) -> np.ndarray:
    """One number for the neighbours in a context."""
    key_P = np.zeros(len(places_P), np.int64)
    for distance in context:
        key_P = key_P * size + neighbours(tokens_T, documents_T, places_P, distance)
    return key_P


class Counts:
    """The most frequent token in each context, and how often the context was seen."""

    def __init__(self, tokens_T: np.ndarray, documents_T: np.ndarray, context: tuple[int, ...], size: int):
        self.context, self.size = context, size
        key_T = keys(tokens_T, documents_T, np.arange(len(tokens_T)), context, size)
        order = np.lexsort((tokens_T, key_T))
        key_T, token_T = key_T[order], tokens_T[order]
        new_T = np.append(True, (np.diff(key_T) != 0) | (np.diff(token_T) != 0))
        starts = np.flatnonzero(new_T)
        counts, key_U, token_U = np.diff(starts, append=len(key_T)), key_T[starts], token_T[starts]
        order = np.lexsort((counts, key_U))
        last = np.flatnonzero(np.append(np.diff(key_U[order]) != 0, True))
        self.keys, self.best = key_U[order][last], token_U[order][last]
        self.seen = np.diff(np.cumsum(counts[order])[last], prepend=0)

    def ask(self, tokens_T, documents_T, places_P) -> tuple[np.ndarray, np.ndarray]:
        """The best token at each place, and how often its context was seen."""
        key_P = keys(tokens_T, documents_T, places_P, self.context, self.size)
        where_P = np.minimum(np.searchsorted(self.keys, key_P), len(self.keys) - 1)
        return self.best[where_P], np.where(self.keys[where_P] == key_P, self.seen[where_P], 0)


def best_ngram(models: list[Counts], tokens_T, documents_T, places_P, targets_P) -> float:
    """Accuracy of the two-sided n-gram model with the threshold that does best."""
    asked = [model.ask(tokens_T, documents_T, places_P) for model in models]
    found = []
    for least in LEAST:
        guess_P = np.full(len(places_P), -1)
        for best_P, seen_P in asked:
            guess_P = np.where((guess_P < 0) & (seen_P >= least), best_P, guess_P)
        found.append(float(np.mean(guess_P == targets_P)))
    return max(found)


def held_out(experiment: Experiment) -> dict[str, np.ndarray]:
    """Held-out rows end to end: tokens as shown and as in the text, documents; of masks: places, targets, guesses."""
    model, task, mask = experiment.model, experiment.task, experiment.task.vocabulary.sentinel(0)
    _, params = experiment.checkpoint()

    @jax.jit
    def guesses(params, batch):
        module = model.module(params)
        return task.head(module, task.forward(module, batch).hidden, batch).argmax(-1)

    found = {name: [] for name in ("shown", "text", "documents", "places", "targets", "guesses")}
    for number, batch in experiment._open_loader("validation", epochs=1).iterate():
        shown_BL, places_BK, targets_BK = batch["tokens"], batch["target_positions"], batch["targets"]
        rows, length = shown_BL.shape
        asked_BK = (batch["loss_weights"] > 0) & (np.take_along_axis(shown_BL, places_BK, axis=1) == mask)
        text_BL, (row, slot) = shown_BL.copy(), np.nonzero(batch["loss_weights"])
        text_BL[row, places_BK[row, slot]] = targets_BK[row, slot]
        row_B1 = number * rows + np.arange(rows)[:, None]
        found["shown"].append(shown_BL.reshape(-1))
        found["text"].append(text_BL.reshape(-1))
        found["documents"].append((row_B1 * (length + 1) + batch["segment_ids"]).reshape(-1))
        found["places"].append((row_B1 * length + places_BK)[asked_BK])
        found["targets"].append(targets_BK[asked_BK])
        found["guesses"].append(np.asarray(guesses(params, batch))[asked_BK])
    return {name: np.concatenate(parts).astype(np.int64) for name, parts in found.items()}


def compare(workdir: str) -> dict[str, float]:
    """Accuracies on one run's hidden tokens, in percent."""
    experiment = Experiment.open(workdir)
    experiment.objective = dataclasses.replace(experiment.objective, rate=0.15)
    texts = [np.asarray(text, np.int64) for text in stored_tokens(experiment.data / "cache", "train")]
    tokens_T, documents_T = np.concatenate(texts), np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    models = [Counts(tokens_T, documents_T, context, experiment.tokenizer.vocab_size) for context in CONTEXTS]
    nearest = [model for model in models if model.context in NEAREST]
    held = held_out(experiment)
    asked = held["documents"], held["places"], held["targets"]
    return {
        "tokens": len(held["targets"]),
        "model": 100 * float(np.mean(held["guesses"] == held["targets"])),
        "two-sided n-gram": 100 * best_ngram(models, held["shown"], *asked),
        "two-sided n-gram, one neighbour a side": 100 * best_ngram(nearest, held["shown"], *asked),
        "two-sided n-gram, neighbours uncovered": 100 * best_ngram(models, held["text"], *asked),
        "unigram": 100 * float(np.mean(held["targets"] == models[-1].best[0])),
    }


if __name__ == "__main__":
    for workdir in sys.argv[1:]:
        print(workdir)
        for name, value in compare(workdir).items():
            print(f"  {name:40} {value:,.0f}" if name == "tokens" else f"  {name:40} {value:.1f} %")
