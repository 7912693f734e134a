"""Answers as numbers: discontinuous metrics and, beside each, a continuous one of the same answers.

Wei et al. 2022 (arXiv:2206.07682) see abilities appear at a scale in exact match and multiple-choice accuracy;
Schaeffer et al. 2023 (arXiv:2304.15004) see the same outputs rise smoothly in edit distance and Brier score, since an
answer of L tokens, each right with probability p, is right as a whole with p ** L.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pretrain.evaluate.answers import Answer
from pretrain.evaluate.tasks import CHOICES, Question


@dataclasses.dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        title: over a plot, with the unit.
        continuous: whether it changes smoothly with the model's probabilities.
        higher_is_better: otherwise lower.
        chance: of a model that takes all choices for equally likely; None where that says nothing.
    """

    title: str
    continuous: bool
    higher_is_better: bool = True
    chance: float | None = None


METRICS = {
    "exact_match": Metric("whole answer right", continuous=False),
    "log_prob_per_token": Metric("log-probability, nats a token", continuous=True),
    "log_prob_per_byte": Metric("log-probability, nats a byte", continuous=True),
    "edit_distance": Metric("edit distance, tokens", continuous=True, higher_is_better=False),
    "token_accuracy": Metric("tokens right", continuous=True),
    "choice_accuracy": Metric("right choice", continuous=False, chance=1 / CHOICES),
    "brier": Metric("Brier score of choices", continuous=True, higher_is_better=False, chance=1 - 1 / CHOICES),
}
PAIRS = (("exact_match", "log_prob_per_token"), ("choice_accuracy", "brier"))  # discontinuous, and its partner


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        above_left, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (a != b))
    return row[-1]


def brier_score(log_probs: np.ndarray, right: int = 0) -> float:
    """Sum over choices of (probability - 1[right]) ** 2 (Brier 1950), in [0, 2]; probabilities are made to sum to 1."""
    p = np.exp(log_probs - np.max(log_probs))
    p /= p.sum()
    p[right] -= 1
    return float(np.square(p).sum())


def measure(question: Question, answer: Answer) -> dict[str, float]:
    """All `METRICS` of one answer.

    exact_match: the greedy answer, cut at the right answer's length, is the right answer token for token; where answers
    are lines, its last token ends the line. edit_distance compares the same two. log_prob_*: of the right answer, which
    is read with its own tokens before each (teacher forcing), as token_accuracy. Choices are judged by the
    log-probability of the whole; a tie is not a right choice.
    """
    totals = np.array([log_probs.sum(dtype=np.float64) for log_probs in answer.log_probs])
    distance = edit_distance(answer.greedy_A.tolist(), question.answer_L.tolist())
    return {
        "exact_match": float(distance == 0),
        "log_prob_per_token": float(totals[0]) / len(question.answer_L),
        "log_prob_per_byte": float(totals[0]) / question.answer_bytes,
        "edit_distance": float(distance),
        "token_accuracy": float(answer.hits_A.mean()),
        "choice_accuracy": float(totals[0] > totals[1:].max()),
        "brier": brier_score(totals),
    }


def summarise(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, float]:
    """Means over questions, and `NAME_error`, the standard error of each; beside them

    questions, answer_tokens: how many, and the mean length of the right answers.
    predicted_exact_match: mean of p ** L, with p the share of right tokens of all answers and L each answer's length.
    """
    rows = [measure(question, answer) for question, answer in zip(questions, answers, strict=True)]
    lengths = np.array([len(question.answer_L) for question in questions])
    accuracy = sum(int(answer.hits_A.sum()) for answer in answers) / lengths.sum()
    result: dict[str, float] = {
        "questions": len(rows),
        "answer_tokens": float(lengths.mean()),
        "predicted_exact_match": float(np.mean(accuracy**lengths)),
    }
    for name in METRICS:
        values = np.array([row[name] for row in rows])
        result[name] = float(values.mean())
        result[f"{name}_error"] = float(values.std() / np.sqrt(len(values)))
    return result
