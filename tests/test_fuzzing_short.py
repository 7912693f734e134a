"""A short form of the fuzzing that `make faults` does 10,000 times."""

import random

import pytest
from fuzzing import WATCH, fuzz, mutate_json, mutate_lines, run_main


def test_mutated_input_is_answered_in_a_line(tiny_run, tmp_path):
    done = fuzz(tmp_path, tiny_run, cases=80, seed=20_000)
    assert sum(done.values()) == 80 and all(count for kind, count in done.items() if kind != "report"), done


def test_a_write_elsewhere_a_traceback_and_a_strange_exit_code_are_seen(tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="written outside"), WATCH.outside(tmp_path / "inside"):
        (tmp_path / "elsewhere").write_text("x")
    with WATCH.outside(tmp_path):
        (tmp_path / "elsewhere").write_text("x")
    monkeypatch.setattr("fuzzing.main", lambda arguments: 3)
    with pytest.raises(AssertionError):
        run_main(["report"], tmp_path)


def test_mutators_are_seeded_and_change_things():
    text, value = "A = 1\nB = 2\nC = 3\n", {"a": [1, 2], "b": {"c": "d"}}
    again = [(mutate_lines(random.Random(n), text), mutate_json(random.Random(n), value)) for n in range(50)]
    assert repr(again) == repr(
        [(mutate_lines(random.Random(n), text), mutate_json(random.Random(n), value)) for n in range(50)]
    )
    assert sum(lines != text for lines, _ in again) > 40 and sum(other != value for _, other in again) > 40
