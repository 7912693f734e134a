"""Checkpoints with Orbax: parameters, optimizer, step and rng as one item, the data position as another.

A checkpoint is written in the background and becomes visible only when it is whole. Restoring names the layout that
is wanted, so another mesh or number of hosts can pick a run up.
"""

import dataclasses
from typing import Any

import gin
import jax
import orbax.checkpoint as ocp

from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.core.storage import Path, is_remote
from pretrain.core.trees import named_leaves
from pretrain.train.state import TrainState


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """How checkpoints are kept.

    Attributes:
        every: steps between checkpoints; the last step is always kept.
        keep: how many of the newest to keep.
    """

    every: int = 1000
    keep: int = 3

    def __post_init__(self):
        check_fields(self)
        check(self.every >= 1, f"CHECKPOINT_EVERY must be >= 1 step, got {self.every}")
        check(self.keep >= 1, f"Checkpointing.keep must be >= 1, got {self.keep}")


class Checkpointer:
    """Saves and restores the states of one run. Use as a context manager: leaving it waits for pending saves."""

    def __init__(self, folder: Path | str, config: Checkpointing | None = None, *, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else (config or Checkpointing()).keep,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        self._folder = Path(folder) if is_remote(folder) else Path(folder).absolute()  # Orbax takes no relative path
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete checkpoints, the oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied to host memory."""
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(_fields(state)), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=items)

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state of `step` (newest by default), laid out as `shardings`, and its data position.

        Raises:
            UserError: there is no such checkpoint.
        """
        items = ocp.args.Composite(
            state=_restore_args(_fields(shapes), _fields(shardings)), position=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(self._existing(step), args=items)
        return TrainState(**restored["state"]), restored["position"]

    def restore_params(self, shapes: Any, shardings: Any, step: int | None = None) -> Any:
        """Only the parameters of `step` (newest by default), for evaluation, generation and `--init_from`.

        Raises:
            UserError: there is no such checkpoint, or its parameters are those of another model.
        """
        step = self._existing(step)
        kept = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree["params"]
        theirs = {name: tuple(leaf.shape) for name, leaf in named_leaves(kept).items()}
        ours = {name: tuple(leaf.shape) for name, leaf in named_leaves(shapes).items()}
        for name in sorted(theirs.keys() | ours.keys()):
            there, here = (f"{tree[name]}" if name in tree else "missing" for tree in (theirs, ours))
            check(there == here, f"{self._folder} is of another model: {name} is {there} there and {here} here")
        args = _restore_args({"params": shapes}, {"params": shardings}, partial=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def _existing(self, step: int | None) -> int:
        if step is None:
            step = self.latest_step()
        if step is None or step not in self._manager.all_steps():
            raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {self._folder}: train first")
        return step

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _fields(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _restore_args(shapes: dict, shardings: dict, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    item = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
