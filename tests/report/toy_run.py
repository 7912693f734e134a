"""A finished run in small numbers, for the report to show."""

import copy
import json
from pathlib import Path

REASON = {"stage": "rules", "rule": "min_characters"}
SOURCE = {
    "read": {"documents": 10, "bytes": 1000},
    "kept": {"documents": 7, "bytes": 640},
    "train": {"documents": 6, "bytes": 600},
    "validation": {"documents": 1, "bytes": 40},
    "stages": [
        {
            "stage": "read",
            "in": {"documents": 10, "bytes": 1000},
            "rejected": {},
            "edited": {},
            "out": {"documents": 10, "bytes": 1000},
        },
        {
            "stage": "rules",
            "in": {"documents": 10, "bytes": 1000},
            "rejected": {
                "min_characters": {"documents": 1, "bytes": 100},
                "max_characters": {"documents": 2, "bytes": 200},
            },
            "edited": {"boilerplate": {"edits": 5, "bytes": 60}},
            "out": {"documents": 7, "bytes": 640},
        },
    ],
    "lengths": {"read": {}, "kept": {}},
    "examples": {
        "kept": [],
        "dropped": [
            {"id": "1", "origin": "a.txt", "excerpt": "too short", "value": 9.0, "threshold": 64.0, **REASON},
            {"id": "2", "origin": "b.txt", "excerpt": "", "duplicate_of": "1", **REASON},
        ],
    },
}
DATASHEET = {
    "total": {key: SOURCE[key] for key in ("read", "kept", "train", "validation")},
    "sources": {"books": SOURCE},
    "input": {"files": 3, "bytes": 1200, "ignored_files": {".pdf": 4}},
    "recipe": {},
    "config": "",
    "fingerprint": "f",
    "versions": {},
}
CACHE = {
    "sources": {
        "books": {
            "train": {"documents": 6, "tokens": 150, "bytes": 600, "shards": []},
            "validation": {"documents": 1, "tokens": 10, "bytes": 40, "shards": []},
        }
    },
    "tokenizer": {"kind": "sentencepiece", "vocab_size": 8192, "fingerprint": "abcdef"},
}
EVALUATION = {
    "step": 40,
    "bits_per_byte": 1.75,
    "perplexity": 33.5,
    "tokens": 10,
    "bytes": 40,
    "baselines": {"unigram": 4.5, "gzip": 2.25, "xz": 2.125},
}
SAMPLES = [{"prompt": "def ", "text": "f(x):\n    return x"}, {"prompt": "", "text": "Once"}]
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux",
    "processors": 2,
    "packages": {"jax": "0.10.2", "flax": None},
    "backend": "tpu",
    "devices": {"TPU v5e": 8},
    "processes": 2,
    "git": {"commit": "c0ffee", "modified": True},
}
PHASES = {
    "productive": 60.0, "compile": 10.0, "data_wait": 5.0, "checkpoint": 5.0, "evaluation": 0.0, "restart": 15.0,
    "lost": 5.0,
}  # fmt: skip
INCARNATION = {"began": 0.0, "ended": 9.0, "first_step": 0, "last_step": 5, "finished": False, "seconds": PHASES}
GOODPUT = {"goodput": 0.6, "lost_steps": 7, "seconds": PHASES, "incarnations": [INCARNATION, INCARNATION]}
EVENTS = [
    {"event": 1, "time": 1.0, "kind": "crash", "step": 20, "process": 0, "exit_code": -9, "action": "restart"},
    {"event": 2, "time": 2.0, "kind": "hang", "step": None, "stacks": "a <long> path " * 5, "seconds": 61.5},
]
CONFIG = "TRAIN_STEPS = 40\n"


def metrics(rows: int = 4, **changes) -> list[dict]:
    """Rows every 10 steps at 1,000 tokens a step and 2,000 tokens a second; every other one with a validation."""
    made = []
    for number in range(1, rows + 1):
        row = {
            "step": 10 * number,
            "loss": 8.0 / number,
            "learning_rate": 1e-3 / number,
            "grad_norm": 1.0,
            "tokens": 10_000 * number,
            "seconds": 5.0,
            "tokens_per_second": 2_000.0,
        }
        made.append(row | ({"validation_loss": 9.0 / number} if number % 2 == 0 else {}) | changes)
    return made


def files() -> dict[str, object]:
    """What every stage leaves in a workdir, by path."""
    return {
        "corpus/datasheet.json": copy.deepcopy(DATASHEET),
        "cache/complete.json": copy.deepcopy(CACHE),
        "metrics.jsonl": metrics(),
        "evaluation.json": copy.deepcopy(EVALUATION),
        "samples.jsonl": copy.deepcopy(SAMPLES),
        "environment.json": copy.deepcopy(ENVIRONMENT),
        "goodput.json": copy.deepcopy(GOODPUT),
        "events.jsonl": copy.deepcopy(EVENTS),
    }


def write(workdir: Path, contents: dict[str, object]) -> Path:
    """Writes `files()` or a part of them; lists become lines."""
    for name, value in contents.items():
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = value if isinstance(value, list) else [value]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir
