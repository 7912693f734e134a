"""Benchmark files: JSONL records to the texts of each item that must not be in a corpus.

The layouts of MMLU, HellaSwag, HumanEval and GSM8K are known by the fields of their records; of other files the fields
of `BenchmarkFields` are read. An item can have several texts: the question alone, and the question with its answers.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import gin
import msgspec

from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.curate.inputs import InputFile, find_files
from pretrain.curate.readers import split_lines

MAX_RECORD_BYTES = 64 << 20


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class BenchmarkFields:
    """Which fields of a benchmark's records are what.

    Attributes:
        id: the item's id; records without it are known by the number of their line, from 1.
        text: the fields that hold text (strings or lists of strings); joined in this order.
        layout: mmlu, hellaswag, humaneval, gsm8k, or "fields" for those named here; None: by the record itself, these
            fields first.
    """

    id: str = "id"
    text: tuple[str, ...] | str = ("text",)
    layout: str | None = None

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "text", (self.text,) if isinstance(self.text, str) else tuple(self.text))
        known = " ".join([*LAYOUTS, FIELDS])
        check(
            self.layout in (None, FIELDS, *LAYOUTS), f"BenchmarkFields.layout must be one of {known}: {self.layout!r}"
        )
        check(bool(self.text), "BenchmarkFields.text names no field")


class Layout(NamedTuple):
    """A benchmark's records: the fields that tell it, the one with the id (if any), and how texts are made of them."""

    fields: tuple[str, ...]
    id: str | None
    texts: Callable[[dict[str, Any]], list[str]]


class Item(NamedTuple):
    """One benchmark item: name as "benchmark/id", and its texts."""

    name: str
    texts: tuple[str, ...]


FIELDS = "fields"
LAYOUTS = {
    "mmlu": Layout(
        ("question", "choices"), None, lambda row: [row["question"], "\n".join([row["question"], *row["choices"]])]
    ),
    "hellaswag": Layout(("ctx", "endings"), "ind", lambda row: [f"{row['ctx']} {end}" for end in row["endings"]]),
    "humaneval": Layout(
        ("prompt", "canonical_solution"), "task_id", lambda row: [row["prompt"] + row["canonical_solution"]]
    ),
    "gsm8k": Layout(("question", "answer"), None, lambda row: [row["question"], f"{row['question']}\n{row['answer']}"]),
}


def load_items(pattern: str | tuple[str, ...], fields: BenchmarkFields) -> list[Item]:
    """The items of all files that a path, glob or folder (or several) names, in the order of files and lines.

    Raises:
        UserError: no such file, or a record that cannot be read: an item left out would not be looked for.
    """
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    files = sorted({file for each in patterns for file in find_files(each, "benchmark", "jsonl")[0]})
    return [item for file in files for item in _read(file, fields)]


def _read(file: InputFile, fields: BenchmarkFields) -> list[Item]:
    benchmark = os.path.basename(file.path).split(".jsonl")[0].removesuffix(".ndjson")
    items = []
    for number, piece in enumerate(split_lines(file, MAX_RECORD_BYTES), 1):
        if piece.problem or not piece.content.strip():
            check(not piece.problem, f"benchmark {file.path}, line {number}: {piece.problem}")
            continue
        try:
            row = _decoder().decode(piece.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"benchmark {file.path}, line {number}: not JSON: {error}") from error
        check(isinstance(row, dict), f"benchmark {file.path}, line {number}: not a JSON object")
        id_, texts = _texts(row, fields, f"benchmark {file.path}, line {number}")
        items.append(Item(f"{benchmark}/{number if id_ is None else id_}", tuple(texts)))
    check(bool(items), f"benchmark {file.path} holds no records")
    return items


@functools.cache
def _decoder() -> msgspec.json.Decoder:
    return msgspec.json.Decoder()


def _texts(row: dict[str, Any], fields: BenchmarkFields, place: str) -> tuple[Any, list[str]]:
    """The id, which may be None, and the texts of a record."""
    own = Layout(fields.text, fields.id, lambda row: ["\n".join(_strings(row[name]) for name in fields.text)])
    candidates = {FIELDS: own, **LAYOUTS}
    if fields.layout is not None:
        candidates = {fields.layout: candidates[fields.layout]}
    for layout in candidates.values():
        if all(name in row for name in layout.fields):
            try:
                return row.get(layout.id or fields.id), layout.texts(row)
            except TypeError as error:
                raise UserError(f"{place}: {', '.join(layout.fields)} must hold text: {error}") from error
    wanted = " or ".join("+".join(layout.fields) for layout in candidates.values())
    raise UserError(f"{place} has none of the fields {wanted}, but {', '.join(row)}; name them in BenchmarkFields.text")


def _strings(value: Any) -> str:
    if not isinstance(value, (str, list)):
        raise TypeError(f"{type(value).__name__} found")
    return value if isinstance(value, str) else "\n".join(value)
