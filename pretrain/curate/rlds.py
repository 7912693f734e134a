"""Robots' episodes as RLDS keeps them in TensorFlow data sets (Ramos et al. 2021), so as Open X-Embodiment has them.

    tfds:FOLDER:SPLIT     an example is an episode: `steps`, a data set of its own, and what is told of all of them

`Fields.arrays` names what is taken of each step, by the path to it, e.g. {'frames': 'observation/image', 'states':
'observation/state', 'actions': 'action'}; `Fields.text` the instruction, of the first step or of the episode, e.g.
'language_instruction'. RLDS says with a step what was done after it; the last one of an episode has no action that
means anything, and is not to be learned from. `write_rlds` writes the same: `pretrain record --layout=rlds`.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.readers import Fields

STEPS, LAST = "steps", "is_last"
FLAGS = ("is_first", LAST, "is_terminal")  # the task is not known to have ended for good
NAME, VERSION = "episodes", "1.0.0"  # of what is written
PATHS = {"frames": "observation/image", "states": "observation/state", "actions": "action"}
INSTRUCTION = "language_instruction"


def is_episode(example: Any) -> bool:
    """Whether an example of a data set, as numpy has it, is an episode of steps."""
    return isinstance(example, Mapping) and not isinstance(
        example.get(STEPS, b""), (Mapping, np.ndarray, np.generic, bytes)
    )


def episode(origin: str, example: Mapping[str, Any], fields: Fields) -> Record | Unreadable:
    """A document of an episode: the arrays that `Fields.arrays` names, each with an element a step."""
    check(
        bool(fields.arrays),
        f"{origin}: an episode: say what to take, e.g. Fields.arrays = {{'frames': {PATHS['frames']!r}}}",
    )
    kept, last, size, told = {name: [] for name in fields.arrays}, [], 0, _at(example, fields.text)
    for step in example[STEPS]:
        for name, path in fields.arrays.items():
            value = _at(step, path)
            if value is None:
                return Unreadable(
                    origin, f"a step has no {path!r}; it has {', '.join(_paths(step))}", rule=f"no_{name}"
                )
            kept[name].append(value := np.atleast_1d(value))  # a single number is kept as such
            size += value.nbytes
        if size > fields.max_record_bytes:
            problem = f"an episode of more than {fields.max_record_bytes:,} bytes, Fields.max_record_bytes"
            return Unreadable(origin, problem, rule="large_episode")
        told = _at(step, fields.text) if told is None else told
        last.append(bool(step.get(LAST, False)))
    if not last:
        return Unreadable(origin, "an episode without steps", rule="no_steps")
    arrays = {}
    for name, values in kept.items():
        if len({value.shape for value in values}) > 1 or values[0].dtype.kind not in "biuf":
            return Unreadable(origin, f"{fields.arrays[name]}: not numbers of one shape", rule=f"broken_{name}")
        array = np.stack(values)
        arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    about = {name: _words(value) for name, value in example.items() if name != STEPS}
    arrays = taught(arrays, last)
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else ""
    metadata = json.dumps(about | {"steps": len(last)}, sort_keys=True, default=str)
    return Record(text, origin, group=origin, metadata=metadata, arrays={n: to_bytes(x) for n, x in arrays.items()})


def taught(arrays: dict[str, np.ndarray], void: Iterable[bool]) -> dict[str, np.ndarray]:
    """The arrays of a recording, with `action_targets` and `action_weights` where they are missing.

    What was done is what is to be learned, except at steps that are `void`.
    """
    if "actions" not in arrays:
        return arrays
    weights = 1 - np.asarray(list(void), np.float32)
    weights = arrays.get("action_weights", weights).reshape(len(weights))
    return {"action_targets": arrays["actions"], **arrays, "action_weights": weights}


def write_rlds(folder: str, episodes: Iterable[Record]) -> dict[str, int]:
    """Writes episodes as a TensorFlow data set, to be read as tfds:FOLDER/episodes/1.0.0:train.

    Args:
        folder: a new one.
        episodes: documents whose arrays all have one element a step, and the same shapes and dtypes.

    Returns:
        How many there are, and how many steps.

    Raises:
        UserError: the folder holds something, there are no episodes, TFDS is missing, or an episode is not like the
            first.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"--layout=rlds needs the data extra: pip install 'pretrain[data]' ({error})") from error
    root, count = Path(folder), {"episodes": 0, "steps": 0}
    check(not (root.exists() and any(root.iterdir())), f"--output={folder} holds something already; name a new folder")
    episodes = iter(episodes)
    first = next(episodes, None)
    check(first is not None, f"no episodes: nothing was written to {folder}")
    described = {name: _feature(tfds, x) for name, x in _arrays(first).items()}
    described |= {name: tfds.features.Scalar(np.bool_) for name in FLAGS} | {INSTRUCTION: tfds.features.Text()}
    steps = tfds.features.Dataset(_nested(described))
    features = tfds.features.FeaturesDict({STEPS: steps, "episode_metadata": {"origin": tfds.features.Text()}})
    like = {name: (x.shape[1:], x.dtype) for name, x in _arrays(first).items()}

    def examples() -> Iterator[tuple[int, dict]]:
        for number, record in enumerate(itertools.chain([first], episodes)):
            arrays = _arrays(record)
            same = {name: (x.shape[1:], x.dtype) for name, x in arrays.items()} == like
            length = len(next(iter(arrays.values())))
            check(
                same and all(len(x) == length for x in arrays.values()),
                f"{record.origin}: its arrays are not like the first episode's, or not all equally long",
            )
            count["episodes"], count["steps"] = number + 1, count["steps"] + length
            rows = []
            for step in range(length):
                told = dict(zip(FLAGS, (step == 0, step == length - 1, False), strict=True))
                row = {name: x[step] for name, x in arrays.items()}
                rows.append(_nested(row | told | {INSTRUCTION: record.text}))
            yield number, {STEPS: rows, "episode_metadata": {"origin": record.origin}}

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download, and there is none
        tfds.dataset_builders.store_as_tfds_dataset(
            name=NAME, version=VERSION, features=features, split_datasets={"train": examples()},
            data_dir=str(folder), disable_shuffling=True,
        )  # fmt: skip
    return count


def _arrays(record: Record) -> dict[str, np.ndarray]:
    """By path within a step."""
    found = {PATHS.get(name, name): from_bytes(value) for name, value in (record.arrays or {}).items()}
    check(bool(found), f"{record.origin} holds no arrays: it is no recording")
    return found


def _feature(tfds: Any, array: np.ndarray) -> Any:
    if array.dtype == np.uint8 and array.ndim == 4:
        return tfds.features.Image(shape=array.shape[1:], encoding_format="png")
    return tfds.features.Tensor(shape=array.shape[1:], dtype=array.dtype)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *folders, name = path.split("/")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = value
    return found


def _at(values: Any, path: str) -> Any:
    """What lies at "a/b/c" of nested dictionaries; None where nothing does."""
    for name in path.split("/"):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _paths(values: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found += _paths(value, f"{before}{name}/") if isinstance(value, Mapping) else [f"{before}{name}"]
    return found


def _words(value: Any) -> Any:
    """What is told of an episode, as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _words(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
