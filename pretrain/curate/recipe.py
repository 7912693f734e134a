"""A curation recipe, and the one function that carries it out: raw text in, a clean documented corpus out."""

import dataclasses
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import pyarrow as pa

from pretrain.core import storage
from pretrain.core.errors import UserError, check
from pretrain.curate import datasheet, engine
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.formats import NOT_PATHS, PYTHON, find_inputs, split_format
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields
from pretrain.curate.reading import read_batches
from pretrain.curate.rules import TextRules
from pretrain.curate.shards import shard_name, split_phases
from pretrain.curate.stages import FittedStage, KeyedStage, MapStage, Stage
from pretrain.curate.tasks import Plan

FORMAT_VERSION = 1  # part of the fingerprint: raise it when the same recipe gives another output
SHARD_BYTES = 64 << 20  # of text a shard, about
MIN_SHARDS = 4
UNCOMPRESSED_SPILL_BYTES = 2 << 30  # less input than this is spilled as it is: the page cache holds it
COMPLETE = "complete.json"


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to curate, and how.

    Attributes:
        input: "python" (the text that ships with Python); a path, glob or folder, or one with its format before it
            ("code:", "books:" …; see `pretrain.curate.formats`); several of them in a list; or {source name: any of
            these}.
        source: the source name of an input that is not given by name.
        stages: stages in order; see `pretrain.curate.stages`.
        validation_fraction: of documents (of groups, where records have one) that go to the validation split.
        max_unreadable: fraction of records that may be unreadable before the run fails.
        fields: which fields of a record hold what.
        shards: number of output shards; None chooses by the input's size. A shard has to fit in memory.
    """

    input: str | Sequence[str] | Mapping[str, str | Sequence[str]] = PYTHON
    source: str = "corpus"
    stages: Sequence[Stage] = dataclasses.field(default_factory=lambda: (TextRules(), ExactDedup()))
    validation_fraction: float = 0.05
    max_unreadable: float = 0.01
    fields: Fields = dataclasses.field(default_factory=Fields)
    shards: int | None = None

    def __post_init__(self):
        check(bool(self.input), "Recipe.input is empty; give a path, a glob, a folder or 'python'")
        for name in ("validation_fraction", "max_unreadable"):
            check(0 <= getattr(self, name) <= 1, f"Recipe.{name} must lie in 0 … 1, not {getattr(self, name)}")
        check(self.shards is None or self.shards >= 1, f"Recipe.shards must be at least 1, not {self.shards}")
        check(bool(re.fullmatch(r"[\w.-]+", self.source)), f"Recipe.source must be a plain name, not {self.source!r}")
        for stage in self.stages:
            known = isinstance(stage, (MapStage, KeyedStage, FittedStage)) and dataclasses.is_dataclass(stage)
            check(known and not isinstance(stage, type), f"Recipe.stages: {stage!r} is no stage; write @Name()")
        names = ["read", *(stage.name for stage in self.stages)]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        check(not repeated, f"Recipe.stages: the name {repeated[:1]} is used twice; set the stage's `name`")

    def files(self) -> tuple[list[InputFile], Counter]:
        """The input files, sorted, and how many files of folders are ignored, by extension.

        Raises:
            UserError: nothing is there to read.
        """
        files, ignored = set(), Counter()
        for source, pattern in self.patterns():
            found, passed_over = find_inputs(pattern, source)
            files.update(found)
            ignored.update(passed_over)
        sizes = [file.size for file in files]
        check(any(sizes), f"the corpus is empty: all {len(sizes)} input file(s) of {self.input!r} have 0 bytes")
        return sorted(files), ignored

    def patterns(self) -> list[tuple[str, str]]:
        """(source, path or glob or folder or "python") of each input."""
        by_source = self.input if isinstance(self.input, Mapping) else {self.source: self.input}
        pairs = [(source, [given] if isinstance(given, str) else given) for source, given in by_source.items()]
        return [(source, pattern) for source, patterns in pairs for pattern in patterns]

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("source", "validation_fraction", "max_unreadable", "shards")},
            "input": _plain(self.input),
            "fields": dataclasses.asdict(self.fields),
            "stages": [{"stage": type(stage).__name__, **dataclasses.asdict(stage)} for stage in self.stages],
        }


def curate(recipe: Recipe, output: os.PathLike | str, *, workers: int | None = None, config_text: str = "") -> dict:
    """Curates a corpus into `output`; returns at once where this recipe's result already is.

    Workers are spawned: a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        recipe: what to do.
        output: folder for documents/, rejected/, edits/, datasheet.* and, last, complete.json; local or remote.
        workers: processes; None for one a core.
        config_text: the configuration as the user gave it, for the datasheet.

    Returns:
        The datasheet, as in `output`/datasheet.json.

    Raises:
        UserError: no input, or `output` holds something else.
        RunError: too much of the input is unreadable, or the work failed.
    """
    _check_apart(recipe, output)
    files, ignored = recipe.files()
    settings = recipe.resolved()
    fingerprint = storage.fingerprint([FORMAT_VERSION, settings, [list(file) for file in files]])
    output = storage.Path(output)
    if (output / COMPLETE).exists():
        if storage.read_json(output / COMPLETE).get("fingerprint") != fingerprint:
            raise UserError(
                f"{output} holds the result of another recipe or input; give another output folder or delete this one"
            )
        return storage.read_json(output / "datasheet.json")
    expected_bytes = sum(file.expected_bytes for file in files)
    shards = recipe.shards or max(MIN_SHARDS, -(-expected_bytes // SHARD_BYTES))
    work = _work_folder(output, fingerprint)
    stages = tuple(_fitted(stage, recipe) for stage in recipe.stages)
    fields, fraction = recipe.fields, recipe.validation_fraction
    codec = "lz4" if expected_bytes > UNCOMPRESSED_SPILL_BYTES else None
    plan = Plan(work, os.fspath(output), shards, fields, fraction, split_phases(stages), codec)
    totals = engine.run(plan, files, recipe.max_unreadable, workers)
    sheet = datasheet.make(totals, settings, files, ignored, config_text, fingerprint)
    _remove_leftovers(output, shards)
    datasheet.write(sheet, output)
    shutil.rmtree(work)
    storage.write_json(output / COMPLETE, {"fingerprint": fingerprint, "shards": shards, "recipe": settings})
    return sheet


def _check_apart(recipe: Recipe, output: os.PathLike | str) -> None:
    """Refuses an output folder inside an input folder, which the next run would read as input."""
    for _, given in recipe.patterns():
        format_, pattern = split_format(given)
        fixed = re.split(r"[*?\[]", pattern)[0]
        folder = fixed if fixed == pattern else os.path.dirname(fixed)
        is_searched = fixed == pattern or "**" in pattern
        if is_searched and format_ not in NOT_PATHS and not storage.is_remote(pattern):
            outer, inner = os.path.abspath(folder), os.path.abspath(os.fspath(output))
            message = f"the output folder {output} lies inside the input folder {folder or '.'}; write it elsewhere"
            check(os.path.commonpath([outer, inner]) != outer, message)


def _fitted(stage: Stage, recipe: Recipe) -> MapStage | KeyedStage:
    """The stage itself, or the map stage that it becomes once it has seen its reference corpus."""
    if not isinstance(stage, FittedStage):
        return stage
    if isinstance(stage.reference, Mapping):
        return stage.fit({name: _reference(pattern, recipe) for name, pattern in stage.reference.items()})
    return stage.fit(_reference(stage.reference, recipe))


def _reference(pattern: str, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """The documents of a reference corpus, a batch at a time."""
    files, _ = find_inputs(pattern, "reference")
    return (batch for table, _ in read_batches(files, recipe.fields, 0.0) for batch in table.to_batches())


def _work_folder(output: storage.Path, fingerprint: str) -> str:
    """Where spills go: inside a local output, in the machine's temporary folder for a remote one."""
    if storage.is_remote(output):
        return os.path.join(tempfile.gettempdir(), f"pretrain-{os.getuid()}", f"curate-{fingerprint}")
    for other in output.glob(".work-*"):
        if other.name != f".work-{fingerprint}":
            shutil.rmtree(other)
    return os.fspath(output / f".work-{fingerprint}")


def _remove_leftovers(output: storage.Path, shards: int) -> None:
    """Removes what an interrupted run left: half-written files, and shards of a run with another number of them."""
    names = {shard_name(shard, shards) for shard in range(shards)}
    for folder in ("documents", "rejected", "edits"):
        for path in (output / folder).iterdir():
            if path.name not in names and re.match(r"\.?\d{5}-of-\d{5}\.parquet", path.name):
                path.unlink()
    for path in output.glob(".*"):
        if re.match(r"\.(datasheet|complete)\.", path.name):
            path.unlink()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value]
