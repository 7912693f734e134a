"""Metrics of answers against their definitions, and Schaeffer et al.'s argument on a toy whose truth is known."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.evaluate.answer_metrics import METRICS, PAIRS, brier_score, edit_distance, measure, summarise
from pretrain.evaluate.answers import Answer
from pretrain.evaluate.tasks import CHOICES, Question
from pretrain.plan.emergence import emergence_score

WORD = st.lists(st.integers(0, 3), max_size=6)


def slow_distance(a: tuple, b: tuple) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


@given(a=WORD, b=WORD)
@settings(max_examples=60, deadline=None)
def test_edit_distance_is_its_recursive_definition(a, b):
    found = functools.lru_cache(slow_distance)
    assert edit_distance(a, b) == edit_distance(b, a) == found(tuple(a), tuple(b))


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [([0.25] * 4, 0.75), ([1, 0, 0, 0], 0.0), ([0, 1, 0, 0], 2.0), ([0.5, 0.5, 0, 0], 0.5)],
)
def test_brier_score(probabilities, score):
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(probabilities, float))
    assert brier_score(logs) == pytest.approx(score)
    assert brier_score(logs - 700) == pytest.approx(score)  # only ratios count
    assert METRICS["brier"].chance == brier_score(np.zeros(CHOICES))


def made(right: list[int], greedy: list[int], hits: list[bool], totals=(-2.0, -3.0, -4.0, -5.0)):
    """A question and an answer with these tokens; log-probabilities spread evenly over each choice."""
    choices = tuple(np.array(right, np.int32) + number for number in range(CHOICES))
    logs = tuple(np.full(len(right), total / len(right), np.float32) for total in totals)
    question = Question(np.array([3], np.int32), choices, answer_bytes=2 * len(right))
    return question, Answer(logs, np.array(hits), np.array(greedy, np.int32))


def test_every_metric_of_one_answer():
    found = measure(*made([5, 6, 7, 8], [5, 7, 8, 9], [True, False, False, True]))
    assert found.keys() == METRICS.keys()
    p = np.exp([-2.0, -3, -4, -5]) / np.exp([-2.0, -3, -4, -5]).sum()
    expected = {
        "exact_match": 0.0, "edit_distance": 2.0, "token_accuracy": 0.5, "log_prob_per_token": -0.5,
        "log_prob_per_byte": -0.25, "choice_accuracy": 1.0, "brier": (1 - p[0]) ** 2 + (p[1:] ** 2).sum(),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)
    assert measure(*made([5, 6], [5, 6], [True, True]))["exact_match"] == 1.0


def test_a_tie_is_not_a_right_choice():
    assert measure(*made([5], [5], [True], (-2.0, -2.0, -3.0, -4.0)))["choice_accuracy"] == 0.0
    assert measure(*made([5], [5], [True], (-2.0, -1.9, -3.0, -4.0)))["choice_accuracy"] == 0.0


def test_a_summary_has_means_and_standard_errors():
    pairs = [made([5, 6], [5, 6], [True, True]), made([5, 6], [5, 7], [True, False])] * 8
    found = summarise(*zip(*pairs, strict=True))
    assert found["questions"] == 16 and found["answer_tokens"] == 2
    assert found["exact_match"] == 0.5 and found["exact_match_error"] == pytest.approx(0.5 / 4)
    assert found["predicted_exact_match"] == pytest.approx(0.75**2)
    assert found["log_prob_per_token_error"] == 0
    assert all(name in found and f"{name}_error" in found for name in METRICS)


def test_pairs_are_a_discontinuous_metric_and_a_continuous_one():
    for discontinuous, continuous in PAIRS:
        assert not METRICS[discontinuous].continuous and METRICS[continuous].continuous


def toy_model(p: float, length: int, count: int, rng: np.random.Generator):
    """`count` answers of a model that gets each token right with probability `p`, and knows it."""
    questions, answers = [], []
    for hits in rng.random((count, length)) < p:
        right = np.arange(10, 10 + length, dtype=np.int32)
        greedy = np.where(hits, right, 5).astype(np.int32)
        choices = (right, *(np.where(np.arange(length) == 0, number, right) for number in range(1, CHOICES)))
        wrong = np.full(length, np.log(p))
        wrong[0] = np.log((1 - p) / 10)
        logs = (np.full(length, np.log(p)), *[wrong] * (CHOICES - 1))
        questions.append(Question(right[:1], choices, length))
        answers.append(Answer(logs, hits, greedy))
    return summarise(questions, answers)


@pytest.mark.parametrize("length", [1, 4, 8])
def test_exact_match_is_the_power_of_smooth_token_accuracy(length):
    """Schaeffer et al. 2023, section 2: same answers, one metric bends and the other does not."""
    rng, count = np.random.default_rng(length), 3000
    scales = np.linspace(0.3, 0.95, 9)  # per-token accuracy of models in order of scale
    rows = [toy_model(p, length, count, rng) for p in scales]
    for p, row in zip(scales, rows, strict=True):
        spread = np.sqrt(p**length * (1 - p**length) / count)
        assert row["exact_match"] == pytest.approx(p**length, abs=4 * spread + 1e-3)
        assert row["predicted_exact_match"] == pytest.approx(p**length, abs=8 * length * spread + 1e-3)
        assert row["log_prob_per_token"] == pytest.approx(np.log(p), rel=1e-5)
        assert row["edit_distance"] == pytest.approx(length * (1 - p), abs=0.15)
    straight = emergence_score([-row["edit_distance"] for row in rows])
    assert straight == pytest.approx(len(scales) - 1, rel=0.35)  # a straight line of 8 steps
    bent = emergence_score([row["exact_match"] for row in rows])
    assert (bent > 2 * straight) == (length == 8) and (bent < 1.3 * straight) == (length == 1)
