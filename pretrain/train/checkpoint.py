"""Checkpoints with Orbax: parameters, optimizer, step and rng as arrays; the host's own state in a manifest.

A save copies the arrays to host memory, and the rest happens in the background: writing, checksums, the manifest
(written last; without it a checkpoint does not exist), and removing what no rule keeps. A failed save is an alarm, and
training goes on. Every restore first compares all bytes with the manifest; a damaged checkpoint is set aside and the
next older whole one is taken. Restoring names the layout that is wanted, so another mesh or number of hosts can pick a
run up. See docs/checkpoints.md.
"""

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pretrain.core.console import say
from pretrain.core.errors import RunError, UserError, check
from pretrain.core.storage import Path, write_text
from pretrain.core.trees import named_leaves
from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.checkpoint_rules import Checkpointing, kept_steps
from pretrain.train.events import EventLog
from pretrain.train.manifest import Damaged
from pretrain.train.saver import Save, Saver, attempt
from pretrain.train.state import TrainState
from pretrain.train.stored_arrays import read_tree, stored_shapes

_NONE, _LOST = -1, -2


class Checkpointer:
    """Saves and restores the states of one run. Use as a context manager: leaving it waits for pending saves.

    Args:
        folder: `checkpoints/` of a workdir.
        config: when, where and how many; gin's by default.
        read_only: for evaluation: nothing is moved, and the local tier is not looked at.
        events: where damage and failures are written down.

    Attributes:
        wanted: steps there are -> those to keep for the run's own sake (to rewind to); asked after every save, in the
            thread that writes.
    """

    def __init__(
        self,
        folder: Path | str,
        config: Checkpointing | None = None,
        *,
        read_only: bool = False,
        events: EventLog | None = None,
    ):
        self.config, self._read_only, self._events = config or Checkpointing(), read_only, events
        self.wanted: Callable[[list[int]], Iterable[int]] = lambda steps: ()
        self._durable, self._fast = CheckpointFolder(folder), None
        self._saver = Saver(self._remove_unwanted, self._failed)
        self._retry_at: float | None = None  # when a save that failed is to be tried again
        self._whole: dict[int, CheckpointFolder] = {}
        if not read_only:
            self._open_for_writing()

    def _open_for_writing(self) -> None:
        one = jax.process_count() == 1
        for name in ("local_tier", "continuous"):
            check(one or not getattr(self.config, name), f"Checkpointing.{name} works in runs of one process only")
        if self.config.local_tier is not None:
            self._fast = CheckpointFolder(Path(self.config.local_tier) / _identity(self._durable.path))
        if jax.process_index() == 0:
            for tier in self._tiers():
                for step in tier.unfinished():
                    self._tell("unfinished_checkpoint", step, f"the save of step {step} was not finished: left out")
                    tier.leave_unfinished(step)

    def _tiers(self) -> list[CheckpointFolder]:
        return [self._durable] if self._fast is None else [self._fast, self._durable]

    # What there is

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None where there has been none."""
        return self.newest()

    def newest(self, at_most: int | None = None, multiple_of: int = 1) -> int | None:
        """The newest whole checkpoint at or before a step, at a multiple of a number; None where there is none.

        Waits for the save that is going on. Damaged ones that are met on the way are set aside.

        Raises:
            RunError: there were checkpoints to take, and every one of them is damaged.
        """
        self.wait()
        found = self._search(at_most, multiple_of) if jax.process_index() == 0 else _NONE
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int64(found)))
        if found == _LOST:
            raise RunError(
                f"no checkpoint in {self._durable.path} is whole, and there were some: look at the damaged ones, bring "
                "them back from a copy, or remove the folder to begin again from step 0"
            )
        return None if found == _NONE else found

    def steps(self) -> list[int]:
        """All complete checkpoints, the oldest first; their files have not been looked at."""
        return sorted({step for tier in self._tiers() for step in tier.steps()})

    def _search(self, at_most: int | None, multiple_of: int) -> int:
        lost = False
        for step in reversed(self.steps()):
            if (at_most is None or step <= at_most) and step % multiple_of == 0:
                if self._whole_tier(step) is not None:
                    return step
                lost = True
        lost |= at_most is None and any(tier.set_aside_steps() for tier in self._tiers())
        return _LOST if lost else _NONE

    def _whole_tier(self, step: int) -> CheckpointFolder | None:
        """Where a step is whole, the fast tier first."""
        for tier in self._tiers() if step not in self._whole else ():
            if step not in tier.steps():
                continue
            try:
                tier.verify(step)
            except Damaged as damage:
                self._damaged(tier, step, str(damage))
            else:
                self._whole[step] = tier
                break
        return self._whole.get(step)

    def _damaged(self, tier: CheckpointFolder, step: int, reason: str) -> None:
        where = str(tier[step]) if self._read_only else tier.set_aside(step, reason)
        told = "an older one is looked for" if self._read_only else f"set aside as {where}"
        self._tell("damaged_checkpoint", step, f"step {step} is damaged, {told}: {reason}", reason=reason, where=where)

    # Saving

    def due(self, step: int) -> bool:
        """True where `save` should be called after this step. Asked once a step; tells of a save that has failed."""
        if self._saver.done:
            self._saver.wait()
        return self._tier_for(step) is not None

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
        *,
        final: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied to host memory.

        A save that cannot be made is an alarm, and is tried again later.

        Args:
            step: steps done.
            state: arrays.
            position: JSON object of the host's own state; `restore` gives it back.
            metrics: of this step, to choose the best by.
            final: no step comes after this one: waits until it is written, to the workdir, and tries for a while.
            before: makes durable what must be so when the checkpoint is; may raise OSError.

        Raises:
            RunError: a final save could not be made.
        """
        tier = self._durable if final else self._tier_for(step) or self._durable
        pin = "Checkpointing.pin" if step in self.config.pin else None
        save = Save(tier, step, json.loads(json.dumps(position)), dict(metrics or {}), pin, before)
        if final:
            self._save_for_certain(save, _fields(state))
        elif self._saver.wait(self.config.patience if self._retry_at is None else 0):
            self._saver.start(save, _fields(state))
            self._retry_at = None if self._saver.error is None else self._retry_at
        else:
            self._failed(step, "the save before it is still being written")

    def _save_for_certain(self, save: Save, arrays: dict[str, Any]) -> None:
        give_up, pause = time.monotonic() + self.config.patience, 1.0
        self._saver.wait()
        while True:
            self._saver.start(save, arrays)
            self._saver.wait()
            if self._saver.error is None:
                return
            if time.monotonic() + pause > give_up:
                raise RunError(f"step {save.step} could not be saved to {self._durable.path}: {self._saver.error}")
            time.sleep(pause)
            pause *= 2

    def _failed(self, step: int, problem: str) -> None:
        self._retry_at = time.monotonic() + self.config.patience
        self._tell("checkpoint_alarm", step, f"ALARM: step {step} is not saved: {problem}", problem=problem)

    def _remove_unwanted(self, save: Save) -> None:
        tier = save.folder
        problem = attempt(lambda: self._remove(tier, self._unwanted(tier)))
        if problem:
            self._tell("checkpoint_alarm", save.step, f"old ones cannot be removed: {problem}", problem=problem)

    def _unwanted(self, tier: CheckpointFolder) -> list[int]:
        steps = tier.steps()
        if tier is self._fast:
            kept = {*steps[-self.config.local_keep :], *self.wanted(steps)}
        else:
            metrics = {step: _metrics(tier, step) for step in steps}
            kept = kept_steps(metrics, self.config, pinned=tier.pinned(), wanted=self.wanted(steps))
        return [step for step in steps if step not in kept]

    def _remove(self, tier: CheckpointFolder, steps: Iterable[int]) -> None:
        for step in steps:
            tier.remove(step)
            self._whole.pop(step, None)

    def _tier_for(self, step: int) -> CheckpointFolder | None:
        """Where this step is to be saved, if it is."""
        free = self._saver.idle and jax.process_count() == 1
        retry = free and self._retry_at is not None and time.monotonic() >= self._retry_at
        if step % self.config.every == 0 or step in self.config.pin or retry:
            return self._durable
        at_once = free and self._retry_at is None and self.config.continuous
        if self._fast is not None:
            return self._fast if at_once or step % self.config.local_every == 0 else None
        return self._durable if at_once else None

    def remove_newer_than(self, step: int) -> None:
        """Removes every checkpoint after a step: the run goes on from there on another path."""
        self.wait()
        for tier in self._tiers() if jax.process_index() == 0 else ():
            self._remove(tier, [newer for newer in tier.steps() if newer > step])

    def wait(self) -> None:
        """Waits for the save that is going on. Its failure is an alarm."""
        self._saver.wait()

    # Restoring

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state of `step` (newest by default), laid out as `shardings`, and its data position.

        Of `control` it has what is asked for and was kept: a run that goes on may steer its updates in another way.

        Raises:
            UserError: there is no such checkpoint, or it is of another model or optimizer.
            RunError: it is damaged.
        """
        step, tier = self._existing(step)
        manifest = tier.manifest(step)
        check(
            manifest.holds == "state",
            f"{tier[step]} holds parameters only, there is no run to go on with: start one with --init_from",
        )
        stored = _stored(tier[step])
        kept = [name for name in shapes.control if f"control/{name}" in stored]
        shapes, shardings = (
            dataclasses.replace(tree, control={name: tree.control[name] for name in kept})
            for tree in (shapes, shardings)
        )
        _check_same(tier[step], stored, _fields(shapes))
        args = _restore_args(_fields(shapes), _fields(shardings))
        restored = _damage_is_failure(tier[step], lambda: read_tree(tier[step], args))
        return TrainState(**restored), manifest.position

    def restore_params(self, shapes: Any, shardings: Any, step: int | None = None) -> Any:
        """Only the parameters of `step` (newest by default), for evaluation, generation and `--init_from`.

        Raises:
            UserError: there is no such checkpoint, or its parameters are those of another model.
            RunError: it is damaged.
        """
        step, tier = self._existing(step)
        _check_same(tier[step], _stored(tier[step]), {"params": shapes})
        args = _restore_args({"params": shapes}, {"params": shardings})
        return _damage_is_failure(tier[step], lambda: read_tree(tier[step], args))["params"]

    def _existing(self, step: int | None) -> tuple[int, CheckpointFolder]:
        """A step that is there, and where; the process that has not verified it takes the durable tier."""
        if step is None:
            step = self.latest_step()
        if step is None or step not in self.steps():
            raise UserError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._durable.path}: train first"
            )
        if jax.process_index() == 0 and self._whole_tier(step) is None:
            raise RunError(f"the checkpoint of step {step} in {self._durable.path} is damaged: choose another step")
        return step, self._whole.get(step, self._durable)

    def _tell(self, kind: str, step: int, text: str, **evidence: Any) -> None:
        say(f"checkpoints: {text}")
        if self._events is not None and jax.process_index() == 0:
            self._events.write(kind, step, **evidence)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self._saver.close()


def _fields(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name != "control" or value}


def _stored(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    return _damage_is_failure(checkpoint, lambda: stored_shapes(checkpoint))


def _check_same(checkpoint: Path, stored: Mapping[str, tuple], wanted: dict[str, Any]) -> None:
    """Names, shapes and (for a whole state) dtypes of what is there and of what is asked for are the same."""
    exact = "opt_state" in wanted
    ours = {name: _shown(leaf.shape, leaf.dtype, exact) for name, leaf in named_leaves(wanted).items()}
    theirs = {
        name: _shown(*about, exact)
        for name, about in stored.items()
        if name in ours or name.split("/")[0] in wanted.keys() - {"control"}
    }
    for name in sorted(theirs.keys() | ours.keys(), key=lambda name: (not name.startswith("params/"), name)):
        there, here = (tree.get(name, "missing") for tree in (theirs, ours))
        what = "model" if name.startswith("params/") else "optimizer"
        check(there == here, f"{checkpoint} is of another {what}: {name} is {there} there and {here} here")


def _restore_args(shapes: dict, shardings: dict) -> ocp.args.PyTreeRestore:
    item = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)


def _shown(shape: tuple[int, ...], dtype: Any, exact: bool) -> str:
    return f"{tuple(shape)} {np.dtype(dtype)}" if exact else f"{tuple(shape)}"


def _damage_is_failure(checkpoint: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Damaged as damage:
        raise RunError(f"{checkpoint} cannot be used: {damage}") from damage


def _identity(folder: Path) -> str:
    """A name for this run's part of a local tier: another run in the same place gets another."""
    file = folder / "identity"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    name = file.read_text().strip()
    check(name.isalnum(), f"{file} was changed: remove it, and the local tier is begun anew")
    return name


def _metrics(tier: CheckpointFolder, step: int) -> dict[str, float]:
    try:
        return tier.manifest(step).metrics
    except Damaged:  # it is found out, and told, when it is needed
        return {}
