"""Registered data sets as input of curation: TensorFlow Datasets and seqio tasks, as they are on disk.

    tfds:NAME[/CONFIG][:VERSION]:SPLIT      "tfds:wikipedia/20230601.en:train", "tfds:c4/en:3.1.0:validation"
    tfds:FOLDER:SPLIT                       a prepared data set by the folder of its version: "tfds:mine/1.0.0:train"
    tfds:FOLDER:SPLIT, of robots' episodes  see `rlds.py`
    seqio:TASK_OR_MIXTURE:SPLIT             the task's source, before its preprocessors; `Fields.modules` register it

Nothing is downloaded or prepared: TFDS looks in TFDS_DATA_DIR or ~/tensorflow_datasets. Which feature is the text is
said by `Fields.text`, which hold pictures, sound or numbers by `Fields.arrays`; TFDS's pictures stay files, as they are
stored. A shard of a split is one unit of work. TensorFlow is imported inside functions only.
"""

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.curate import rlds
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields, from_mapping, one_line

TFDS, SEQIO = "tfds", "seqio"
SPECIFICATION = re.compile(r"(?P<name>.+):(?P<split>[\w.-]+)(?P<part>\[[^\]]*\])?")
SHARD = re.compile(r"(?P<given>.+)#(?P<shard>\d+)/(?P<shards>\d+)")
TYPICAL_BYTES = 4_096  # of an example, where nobody knows


def find_splits(kind: str, given: str, source: str, modules: Sequence[str] = ()) -> list[InputFile]:
    """One unit of work for each shard of a split; its path is the specification with "#shard/shards" behind it.

    Raises:
        UserError: the library is missing, nothing is registered or prepared under that name, or it has no such split.
    """
    match = SPECIFICATION.fullmatch(given)
    check(match is not None, f"--input={kind}:{given}: write {kind}:NAME:SPLIT")
    _quiet(kind)
    if kind == TFDS:
        info = _builder(match["name"]).info.splits
        check(
            match["split"] in info, f"--input={kind}:{given}: its splits are {', '.join(info) or 'none, on this disk'}"
        )
        shards, size = info[match["split"]].num_shards if match["part"] is None else 1, info[match["split"]].num_bytes
    else:
        tasks = _tasks(match["name"], modules)
        splits = sorted({split for task in tasks for split in task.splits})
        check(match["split"] in splits, f"--input={kind}:{given}: its splits are {', '.join(splits)}")
        tasks = [task for task in tasks if match["split"] in task.splits]
        shards = min(len(task.source.list_shards(match["split"])) for task in tasks)
        size = sum(task.num_input_examples(match["split"]) or 0 for task in tasks) * TYPICAL_BYTES
    shards = max(1, shards)
    sizes = max(1, size // shards)
    return [InputFile(f"{kind}:{given}#{shard}/{shards}", sizes, source, kind) for shard in range(shards)]


def read_split(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One example a document; origin is the data set, split and the example's place in it."""
    import tensorflow as tf

    kind, _, rest = file.path.partition(":")
    match = SHARD.fullmatch(rest)
    given, shard, shards = match["given"], int(match["shard"]), int(match["shards"])
    _quiet(kind)
    read = _read_tfds if kind == TFDS else _read_seqio
    place = f"{shard}/{shards}"
    try:
        for place, example in read(given, shard, shards, fields):
            values = example if isinstance(example, dict) else {fields.text: example}  # lines of text have no names
            origin = f"{kind}:{given}:{place}"
            if rlds.is_episode(values):
                yield rlds.episode(origin, values, fields)
            else:
                taken = fields.arrays.values()
                plain = {name: value if name in taken else _plain(value) for name, value in values.items()}
                yield from_mapping(origin, plain, fields)
    except tf.errors.OpError as error:
        yield Unreadable(f"{kind}:{given}:{place}", f"damaged behind this example: {one_line(error)}")


def _read_tfds(given: str, shard: int, shards: int, fields: Fields) -> Iterator[tuple[str, Any]]:
    import tensorflow_datasets as tfds

    match = SPECIFICATION.fullmatch(given)
    part, builder = match["part"] or f"[{shard}shard:{shard + 1}shard]", _builder(match["name"])
    config = tfds.ReadConfig(add_tfds_id=True, try_autocache=False, shuffle_seed=None, interleave_cycle_length=1)
    described = builder.info.features if isinstance(builder.info.features, tfds.features.FeaturesDict) else {}
    files = [
        name for name, feature in described.items()
        if name in fields.arrays.values() and isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    ]  # fmt: skip
    dataset = builder.as_dataset(
        split=match["split"] + part, read_config=config, shuffle_files=False,
        decoders={name: tfds.decode.SkipDecoding() for name in files} or None,
    )  # fmt: skip
    for example in tfds.as_numpy(dataset):
        yield example.pop("tfds_id").decode(), example


def _read_seqio(given: str, shard: int, shards: int, fields: Fields) -> Iterator[tuple[str, Any]]:
    import seqio

    match = SPECIFICATION.fullmatch(given)
    for task in _tasks(match["name"], fields.modules):
        if match["split"] not in task.splits:
            continue
        info = seqio.ShardInfo(shard, shards) if shards > 1 else None
        dataset = task.source.get_dataset(match["split"], shuffle=False, shard_info=info)
        for row, example in enumerate(dataset.as_numpy_iterator()):
            yield f"{task.name}:{shard}/{shards}:{row}", example


def _builder(name: str) -> Any:
    """The builder of a prepared data set; it reads only."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"TFDS input needs the data extra: pip install 'pretrain[data]' ({error})") from error
    try:
        if os.path.exists(os.path.join(name, "dataset_info.json")) or "://" in name:
            return tfds.builder_from_directory(name)
        return tfds.builder(name, try_gcs=False)
    except Exception as error:  # a builder is anyone's code
        raise UserError(f"--input=tfds:{name}: {type(error).__name__}: {one_line(error)}") from error


def _tasks(name: str, modules: Sequence[str]) -> list[Any]:
    try:
        import seqio
    except ImportError as error:
        raise UserError(f"seqio input needs the data extra: pip install 'pretrain[data]' ({error})") from error
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"Fields.modules: {module}: {one_line(error)}") from error
    try:
        return list(seqio.get_subtasks(seqio.get_mixture_or_task(name)))
    except ValueError as error:
        hint = "; name the module that registers it in Fields.modules" if not modules else ""
        raise UserError(f"--input=seqio:{name}: {one_line(error)}{hint}") from error


def _plain(value: Any) -> Any:
    """Numpy values as JSON has them; bytes stay bytes where they are no UTF-8, for the reader to tell about."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(inner) for inner in value] if value.dtype == object else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value


def _quiet(kind: str) -> None:
    """Keeps TensorFlow from writing pages to standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
