"""A curation recipe, and the one function that carries it out: raw text in, a clean documented corpus out."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import pyarrow as pa

from pretrain.core import storage
from pretrain.core.console import say
from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.curate import beam_engine, datasheet, workspace
from pretrain.curate import engine as local_engine
from pretrain.curate.decontaminate import Decontaminate
from pretrain.curate.engine import TooMuchUnreadable
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.formats import NOT_PATHS, PYTHON, find_inputs, split_format
from pretrain.curate.inputs import InputFile
from pretrain.curate.mixture import MixturePlan
from pretrain.curate.readers import Fields
from pretrain.curate.reading import read_batches
from pretrain.curate.rules import TextRules
from pretrain.curate.shards import split_phases
from pretrain.curate.stages import FittedStage, KeyedStage, MapStage, Stage
from pretrain.curate.tasks import Plan
from pretrain.curate.workspace import COMPLETE, Workspace

ENGINES = ("local", "beam")
PARTS = 256  # shards and reading tasks, about, of inputs between MIN_PART_BYTES * PARTS and MAX_PART_BYTES * PARTS
MIN_PART_BYTES, MAX_PART_BYTES = 16 << 20, 256 << 20
MIN_SHARDS = 4
UNCOMPRESSED_SPILL_BYTES = 2 << 30  # less input than this is spilled as it is: the page cache holds it


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
        shards: number of output shards; None chooses by the input's size (16 to 256 MB of text each). A worker holds
            one at a time, as Arrow tables.
        mixture: how the sources are to be mixed in training; it may be changed after the work is done.
    """

    input: str | Sequence[str] | Mapping[str, str | Sequence[str]] = PYTHON
    source: str = "corpus"
    stages: Sequence[Stage] = dataclasses.field(default_factory=lambda: (TextRules(), ExactDedup()))
    validation_fraction: float = 0.05
    max_unreadable: float = 0.01
    fields: Fields = dataclasses.field(default_factory=Fields)
    shards: int | None = None
    mixture: MixturePlan = dataclasses.field(default_factory=MixturePlan)

    def __post_init__(self):
        check_fields(self)
        check(bool(self.input), "Recipe.input is empty; give a path, a glob, a folder or 'python'")
        for name in ("validation_fraction", "max_unreadable"):
            check(0 <= getattr(self, name) <= 1, f"Recipe.{name} must lie in 0 … 1, not {getattr(self, name)}")
        check(self.shards is None or self.shards >= 1, f"Recipe.shards must be at least 1, not {self.shards}")
        check(bool(re.fullmatch(r"[\w.-]+", self.source)), f"Recipe.source must be a plain name, not {self.source!r}")
        for stage in self.stages:
            made = dataclasses.is_dataclass(stage) and not isinstance(stage, type)
            check(made, f"Recipe.stages: {stage!r} is no stage; write @Name()")
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
            found, passed_over = find_inputs(pattern, source, self.fields.modules)
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

    def decontaminated(self, against: str) -> "Recipe":
        """This recipe with the benchmarks `against` (a glob) looked for: in its `Decontaminate` stage, or in one more.

        Raises:
            UserError: they cannot be read.
        """
        is_there = any(isinstance(stage, Decontaminate) for stage in self.stages)
        stages = [
            dataclasses.replace(stage, against=against) if isinstance(stage, Decontaminate) else stage
            for stage in self.stages
        ]
        return dataclasses.replace(self, stages=stages if is_there else [*stages, Decontaminate(against=against)])

    def resolved(self) -> dict[str, Any]:
        """Every setting that decides the output, as plain JSON values."""
        settings = {
            **{name: getattr(self, name) for name in ("source", "validation_fraction", "max_unreadable", "shards")},
            "input": _plain(self.input),
            "fields": dataclasses.asdict(self.fields),
            "stages": [{"stage": type(stage).__name__, **dataclasses.asdict(stage)} for stage in self.stages],
        }
        return json.loads(json.dumps(settings))


def curate(
    recipe: Recipe,
    output: os.PathLike | str,
    *,
    workers: int | None = None,
    config_text: str = "",
    engine: str = "local",
    beam_options: Sequence[str] = (),
) -> dict:
    """Curates a corpus into `output`; returns at once where this recipe's result already is.

    Workers are spawned: a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        recipe: what to do.
        output: folder for documents/, rejected/, edits/, datasheet.* and, last, complete.json; local or remote.
        workers: processes of the local engine; None for one a core.
        config_text: the configuration as the user gave it, for the datasheet.
        engine: "local", or "beam" for a runner that `beam_options` name.
        beam_options: pipeline options of Beam, e.g. ["--runner=DataflowRunner", "--project=…"].

    Returns:
        The datasheet, as in `output`/datasheet.json.

    Raises:
        UserError: no input, `output` holds something else, or another run is writing there.
        RunError: too much of the input is unreadable, or the work failed.
    """
    check(engine in ENGINES, f"--engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    _check_apart(recipe, output)
    files, ignored = recipe.files()
    if ignored:
        listed = ", ".join(f"{number:,} {extension}" for extension, number in sorted(ignored.items()))
        say(f"curate: files that no reader knows are left out: {listed}")
    output, settings = storage.Path(output), recipe.resolved()
    fingerprint = workspace.fingerprint(settings, files, recipe.stages)
    if _is_finished(output, fingerprint):
        return _finished_sheet(recipe, output)
    with Workspace(output, fingerprint, files, is_shared=engine == "beam") as space:
        if _is_finished(output, fingerprint):  # by another run, before this one had the lock
            return _finished_sheet(recipe, output)
        plan = _plan(recipe, output, space.folder, sum(file.expected_bytes for file in files))
        try:
            if engine == "beam":
                totals = beam_engine.run(plan, files, recipe.max_unreadable, beam_options)
            else:
                totals = local_engine.run(plan, files, recipe.max_unreadable, workers)
        except TooMuchUnreadable:
            space.remove()  # files may be repaired: read them again next time
            raise
        sheet = datasheet.make(totals, settings, files, ignored, config_text, fingerprint, recipe.mixture)
        space.clean_output(plan.shards)
        datasheet.write(sheet, output)
        space.remove()
        storage.write_json(output / COMPLETE, {"fingerprint": fingerprint, "shards": plan.shards, "recipe": settings})
    _warn(recipe, sheet)
    return sheet


def _is_finished(output: storage.Path, fingerprint: str) -> bool:
    if not (output / COMPLETE).exists():
        return False
    if storage.read_json(output / COMPLETE).get("fingerprint") == fingerprint:
        return True
    raise UserError(
        f"{output} holds the result of another recipe or input; give another output folder or delete this one"
    )


def _finished_sheet(recipe: Recipe, output: storage.Path) -> dict:
    """The datasheet of a finished corpus, with the recipe's mixture plan."""
    old = storage.read_json(output / "datasheet.json")
    sheet = datasheet.with_mixture(old, recipe.mixture)
    if sheet != old:
        datasheet.write(sheet, output)
    return sheet


def _plan(recipe: Recipe, output: storage.Path, work: str, expected_bytes: int) -> Plan:
    part = min(max(expected_bytes // PARTS, MIN_PART_BYTES), MAX_PART_BYTES)
    return Plan(
        work=work,
        output=os.fspath(output),
        shards=recipe.shards or max(MIN_SHARDS, -(-expected_bytes // part)),
        fields=recipe.fields,
        validation_fraction=recipe.validation_fraction,
        phases=split_phases(_fitted(stage, recipe) for stage in recipe.stages),
        read_bytes=part,
        spill_codec="lz4" if expected_bytes > UNCOMPRESSED_SPILL_BYTES else None,
    )


def _warn(recipe: Recipe, sheet: dict) -> None:
    """Says what is likely a mistake, though it is what the recipe asks for."""
    total = sheet["total"]
    if recipe.validation_fraction > 0 and not total["validation"]["documents"]:
        say("curate: warning: no document is in the validation split; raise Recipe.validation_fraction")
    if not total["kept"]["documents"]:
        say("curate: warning: no document was kept; datasheet.html shows which rules dropped them")


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


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value]
