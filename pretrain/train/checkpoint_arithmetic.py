"""Checkpoints compared and averaged, array by array, on the host.

Averaging the parameters of several steps of a run ("soup", Wortsman et al. 2022; "LAWA", Kaddour 2022), evenly or with
weights that decay with age, often beats each of them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pretrain.core.errors import RunError, UserError, check
from pretrain.core.storage import Path, read_json, write_bytes, write_json, write_text
from pretrain.core.trees import named_leaves
from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.manifest import STATE, Damaged, seal
from pretrain.train.stored_arrays import read_arrays

DATA = "Experiment.data"


def difference(one: Path, other: Path) -> dict[str, Any]:
    """`{"identical": bool, "position": bool, "arrays": [{"name", "largest", "mean", "identical"}, ...]}`.

    Arrays are identical when all their bits are. "largest" and "mean" are of the absolute difference, None where shapes
    differ or one of the two has no such array; `position` says whether the host's own state is the same.

    Raises:
        RunError: one of them is damaged.
    """
    ours, theirs = (named_leaves(_arrays(checkpoint)) for checkpoint in (one, other))
    arrays = [{"name": name, **_compare(ours.get(name), theirs.get(name))} for name in sorted(ours | theirs)]
    manifests = [CheckpointFolder(checkpoint.parent).manifest(int(checkpoint.name)) for checkpoint in (one, other)]
    position = manifests[0].position == manifests[1].position
    return {"identical": position and all(a["identical"] for a in arrays), "position": position, "arrays": arrays}


def average(workdir: str, steps: Sequence[int], output: str, *, decay: float | None = None) -> Path:
    """Makes the workdir `output` with the mean of the parameters of `steps`; returns its checkpoint.

    It reads the corpus and the cache of `workdir`, or of the run whose data that one reads, and has a tokenizer of its
    own, so that `evaluate`, `generate` and `--init_from` take it as they take a run.

    Args:
        workdir: a run.
        steps: of its checkpoints.
        output: a folder that is not there yet.
        decay: weight of each step is decay ** (newest - step); None: all weigh the same.

    Raises:
        UserError: `output` is there already, or no step was given.
        RunError: a checkpoint is damaged, or two do not fit each other.
    """
    check(bool(steps), f"{workdir} has no checkpoint to average")
    check(not Path(output).exists(), f"{output} is there already: give another --output")
    folder, newest = CheckpointFolder(Path(workdir) / "checkpoints"), max(steps)
    weights = {step: 1.0 if decay is None else decay ** (newest - step) for step in steps}
    total = None
    for step in steps:
        part = jax.tree.map(lambda x, w=weights[step]: w * x.astype(np.float64), _arrays(whole(folder, step), "params"))
        try:
            total = part if total is None else jax.tree.map(np.add, total, part)
        except ValueError as error:
            raise RunError(f"the checkpoints of {workdir} are of different models") from error
    like = _arrays(whole(folder, newest), "params")
    mean = jax.tree.map(lambda x, old: (x / sum(weights.values())).astype(old.dtype), total, like)
    _copy_run(Path(workdir), Path(output))
    made = CheckpointFolder(Path(output) / "checkpoints")[newest]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(made / STATE, args=ocp.args.PyTreeSave(mean))
    seal(made, newest, {"average of": {str(step): weight for step, weight in weights.items()}}, {}, "params")
    return made


def whole(folder: CheckpointFolder, step: int | None) -> Path:
    """A checkpoint (the newest one by default) that has been compared with its manifest.

    Raises:
        UserError: there is none.
        RunError: it is damaged.
    """
    if step is None:
        step = max(folder.steps(), default=None)
    if step is None or step not in folder.steps():
        raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {folder.path}")
    try:
        folder.verify(step)
    except Damaged as damage:
        raise RunError(f"{folder[step]} is damaged: {damage}") from damage
    return folder[step]


def _arrays(checkpoint: Path, collection: str | None = None) -> Any:
    try:
        return read_arrays(checkpoint, collection)
    except Damaged as damage:
        raise RunError(f"{checkpoint} is damaged: {damage}") from damage


def _compare(one: np.ndarray | None, other: np.ndarray | None) -> dict[str, Any]:
    if one is None or other is None or one.shape != other.shape:
        return {"largest": None, "mean": None, "identical": False}
    gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    identical = one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return {"largest": float(gap.max(initial=0)), "mean": float(gap.sum() / max(gap.size, 1)), "identical": identical}


def _copy_run(run: Path, output: Path) -> None:
    """The configuration of a run, reading the data of that run, and its tokenizer."""
    bindings, text = read_json(run / "config.json"), (run / "config.gin").read_text()
    source = str(run if "://" in str(run) else run.resolve())
    if bindings.get(DATA, "None") == "None":
        bindings[DATA] = repr(source)
        text = f"{text.rstrip()}\n\n{DATA} = {source!r}\n"
    else:
        source = bindings[DATA].strip("'\"")
    tokenizer = Path(source) / "cache" / "tokenizer"
    for file in tokenizer.iterdir() if tokenizer.exists() else ():
        write_bytes(output / "cache" / "tokenizer" / file.name, file.read_bytes())
    write_text(output / "config.gin", text)
    write_json(output / "config.json", bindings)
