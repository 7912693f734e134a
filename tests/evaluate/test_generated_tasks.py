"""Generated questions: answers that an oracle finds in the prompt, wrong ones that no shortcut tells apart, seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.data.tokenizers import Bytes
from pretrain.evaluate.tasks import CHOICES, CUE, SHOTS, TASKS, TOKENS, find_tasks, near_misses, text_tokens

TOKENIZER = Bytes(extra_ids=7)
CELLS = [(task.name, size) for task in TASKS.values() for size in task.sizes]
ORACLES = {
    "copy": lambda problem: problem.split(),
    "reverse": lambda problem: problem.split()[::-1],
    "sort": lambda problem: sorted(problem.split()),
    "last_letter": lambda problem: [word[-1] for word in problem.split()],
    "capital": lambda problem: problem.upper().split(),
    "addition": lambda problem: [str(sum(int(part) for part in problem.split("+")))],
}


def texts(question) -> tuple[str, list[str]]:
    return TOKENIZER.decode(question.prompt_L), [TOKENIZER.decode(choice) for choice in question.choices]


@pytest.mark.parametrize(("name", "size"), [cell for cell in CELLS if cell[0] in ORACLES])
def test_few_shot_answers_are_those_of_an_oracle(name, size):
    task, oracle = TASKS[name], ORACLES[name]
    for question in task.questions(size, 20, TOKENIZER):
        prompt, choices = texts(question)
        *shots, asked = prompt.split("\n")
        assert len(shots) == SHOTS and asked.endswith(f" {task.mark}")
        for shot in shots:
            problem, answer = shot.split(f" {task.mark} ")
            assert answer.split() == oracle(problem)
        answer = oracle(asked.removesuffix(task.mark))
        assert choices[0] == f" {' '.join(answer)}\n"
        if name != "addition":
            assert len(answer) == size
        assert question.answer_bytes == len(choices[0])  # ASCII


@pytest.mark.parametrize(("name", "size"), [cell for cell in CELLS if cell[0].startswith("induction")])
def test_induction_goes_on_with_what_stood_there_before(name, size):
    for question in TASKS[name].questions(size, 20, TOKENIZER):
        if name == "induction_tokens":
            assert question.prompt_L[0] == TOKENIZER.bos_id and len(question.prompt_L) == 1 + TOKENS + CUE
            sequence, cue = question.prompt_L[1 : 1 + TOKENS].tolist(), question.prompt_L[1 + TOKENS :].tolist()
            answer = question.answer_L.tolist()
            assert len(set(sequence)) == TOKENS
        else:
            words = texts(question)[0].split()
            sequence, cue, answer = words[:-CUE], words[-CUE:], texts(question)[1][0].split()
            assert len(set(sequence)) == len(sequence)
        start = sequence.index(cue[0])
        assert sequence[start : start + CUE + size] == cue + answer and len(answer) == size


@pytest.mark.parametrize(("name", "size"), CELLS)
def test_wrong_choices_differ_in_one_place_and_hold_nothing_new(name, size):
    for question in TASKS[name].questions(size, 20, TOKENIZER, seed=1):
        assert len(question.choices) == CHOICES == len({choice.tobytes() for choice in question.choices})
        if name == "induction_tokens":
            rows = np.array(question.choices)
            assert (rows != rows[0]).any(axis=0).sum() == 1
            assert np.isin(rows, question.prompt_L).all()
            continue
        prompt, choices = texts(question)
        rows = [list(c.strip()) if name == "addition" else c.split() for c in choices]
        assert len({len(row) for row in rows}) == 1
        assert sum(len(set(column)) > 1 for column in zip(*rows, strict=True)) == 1
        seen = prompt + prompt.upper() if name == "capital" else prompt
        assert name == "addition" or all(unit in seen for row in rows for unit in row)
        assert name != "addition" or all(row[0] != "0" for row in rows)


@pytest.mark.parametrize(("name", "size"), CELLS)
def test_questions_follow_from_their_seed_alone(name, size):
    def ids(seed, count):
        questions = TASKS[name].questions(size, count, TOKENIZER, seed)
        return [np.concatenate([q.prompt_L, *q.choices]).tolist() for q in questions]

    assert ids(3, 5) == ids(3, 5)
    assert ids(3, 5) == ids(3, 9)[:5]
    assert ids(3, 5) != ids(4, 5)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_without_the_problem_every_choice_is_as_good(data):
    """Over all units of a pool the changed place holds each equally often, the right one too."""
    pool = list("abcdefgh")
    answer = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=5))
    seed = data.draw(st.integers(0, 1000))
    wrong = near_misses(np.random.default_rng(seed), answer, pool)
    places = [{i for i, (a, b) in enumerate(zip(row, answer, strict=True)) if a != b} for row in wrong]
    assert len({frozenset(place) for place in places}) == 1 and len(places[0]) == 1
    assert len({tuple(row) for row in [answer, *wrong]}) == CHOICES


def test_a_fixed_preference_is_right_a_quarter_of_the_time():
    """A scorer that likes some letters more than others, whatever the problem: chance, at every size."""
    taste = dict(zip("abcdefghijklmnopqrstuvwxyz", np.random.default_rng(5).normal(size=26), strict=True))
    for size in TASKS["reverse"].sizes:
        hits = []
        for question in TASKS["reverse"].questions(size, 800, TOKENIZER):
            scores = [sum(taste[letter] for letter in choice.split()) for choice in texts(question)[1]]
            hits.append(np.argmax(scores) == 0)
        assert np.mean(hits) == pytest.approx(1 / CHOICES, abs=4 * np.sqrt(0.1875 / 800))


def test_random_tokens_are_text_and_neither_marks_nor_sentinels():
    found = text_tokens(TOKENIZER)
    assert [TOKENIZER.decode([token]) for token in found] == [chr(i) for i in range(128)]


def test_tasks_are_found_by_name():
    assert [task.name for task in find_tasks(["sort", "copy"])] == ["sort", "copy"]
    assert len(find_tasks(())) == len(find_tasks(None)) == len(TASKS) >= 7
    with pytest.raises(UserError, match="--task=spelling: no such task; there are induction_tokens, "):
        find_tasks(["spelling"])
