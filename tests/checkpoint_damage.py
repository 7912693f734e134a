"""Three small checkpoints, ways to damage them, and what must come of it: the newest whole one, or a clear error."""

import contextlib
import io
import os
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pretrain.core.errors import RunError
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.checkpoint_rules import Checkpointing
from pretrain.train.events import EventLog, read_events
from pretrain.train.state import TrainState

STEPS = (10, 20, 30)
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_at(step: int, width: int = 300) -> TrainState:
    """A state with other numbers in every array at every step."""
    params = {"embedding": jax.random.normal(jax.random.key(step), (width, 8)), "head": {"scale": jnp.full(8, step)}}
    optimizer = optax.adam(1e-3)
    moments = jax.tree.map(lambda x: x + step if x.ndim else x, optimizer.init(params))
    return TrainState(jnp.int32(step), params, moments, jax.random.key_data(jax.random.key(step)))


def layout(state: TrainState) -> tuple[TrainState, TrainState]:
    """The shapes and the shardings of a state on one device."""
    return jax.eval_shape(lambda: state), jax.tree.map(lambda _: SHARDING, state)


def write_checkpoints(folder: pathlib.Path, steps=STEPS, config: Checkpointing | None = None) -> pathlib.Path:
    """A folder of checkpoints."""
    with Checkpointer(folder, config or Checkpointing(keep=100)) as checkpointer:
        for step in steps:
            checkpointer.save(step, state_at(step), {"step": step, "seen": [step, 0.5]}, {"loss": 1 / step})
            checkpointer.wait()
    return folder


def same(state: TrainState, step: int) -> bool:
    """True where a state is, bit for bit, that of a step."""
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(step)), strict=True)
    )


def _files(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def _flip_bit(chance, checkpoint, original):
    path = chance.choice([path for path in _files(checkpoint) if path.stat().st_size])
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _zero_block(chance, checkpoint, original):
    path = max(_files(checkpoint), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data) // 2)
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def _truncate(chance, checkpoint, original):
    path = chance.choice([path for path in _files(checkpoint) if path.stat().st_size])
    os.truncate(path, chance.randrange(path.stat().st_size))


def _lengthen(chance, checkpoint, original):
    with open(chance.choice(_files(checkpoint)), "ab") as file:
        file.write(chance.randbytes(chance.randint(1, 9)))


def _empty(chance, checkpoint, original):
    os.truncate(chance.choice([path for path in _files(checkpoint) if path.stat().st_size]), 0)


def _delete(chance, checkpoint, original):
    chance.choice(_files(checkpoint)).unlink()


def _delete_folder(chance, checkpoint, original):
    shutil.rmtree(chance.choice(sorted(path for path in checkpoint.rglob("*") if path.is_dir())))


def _swap(chance, checkpoint, original):
    """Two files of one checkpoint change places."""
    while True:
        one, other = chance.sample(_files(checkpoint), 2)
        if one.read_bytes() != other.read_bytes():
            data = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return


def _file_of_another_step(chance, checkpoint, original):
    """One file comes from another step; its name may be another one there."""
    mine = max(_files(checkpoint), key=lambda path: path.stat().st_size)
    other = chance.choice([step for step in STEPS if str(step) != checkpoint.name])
    theirs = max(_files(original / str(other)), key=lambda path: path.stat().st_size)
    mine.write_bytes(theirs.read_bytes())


def _whole_other_step(chance, checkpoint, original):
    """A whole checkpoint, its manifest with it, under the name of another step."""
    other = chance.choice([step for step in STEPS if str(step) != checkpoint.name])
    shutil.rmtree(checkpoint)
    shutil.copytree(original / str(other), checkpoint)


def _unknown_file(chance, checkpoint, original):
    (checkpoint / "state" / f"extra{chance.randrange(100)}").write_bytes(chance.randbytes(10))


def _link(chance, checkpoint, original):
    """A file is the same as before, and lies elsewhere."""
    path = chance.choice(_files(checkpoint / "state"))
    elsewhere = checkpoint.parent.parent / f"elsewhere-{checkpoint.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _wrong_owner(chance, checkpoint, original):
    path = chance.choice(_files(checkpoint / "state"))
    if os.geteuid() == 0:
        os.chown(path, 54321, -1)
    else:
        path.chmod(0)


def _interrupted_before_commit(chance, checkpoint, original):
    """Killed while the arrays were being written."""
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "state").rename(checkpoint / "state.orbax-checkpoint-tmp")
    for path in chance.sample(_files(checkpoint), 2):
        path.unlink()


def _interrupted_before_manifest(chance, checkpoint, original):
    """Killed between the arrays and the manifest; or somebody removed the manifest."""
    (checkpoint / "manifest.json").unlink()


KINDS = (
    _flip_bit, _zero_block, _truncate, _lengthen, _empty, _delete, _delete_folder, _swap, _file_of_another_step,
    _whole_other_step, _unknown_file, _link, _wrong_owner, _interrupted_before_commit, _interrupted_before_manifest,
)  # fmt: skip


def damage_and_restore(original: pathlib.Path, scratch: pathlib.Path, seed: int) -> str:
    """One trial: some of the checkpoints are damaged, and a run goes on. Returns what was done, for a message.

    Raises:
        AssertionError: something else came of it than the newest whole checkpoint, or a clear error, all of it told.
    """
    chance = random.Random(seed)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(original, scratch / "checkpoints")
    hurt = STEPS[-chance.choice((1, 1, 2, 3)) :]
    done, unfinished = [], set()
    for step in hurt:
        kind = KINDS[seed % len(KINDS)] if step == STEPS[-1] else chance.choice(KINDS)
        kind(chance, scratch / "checkpoints" / str(step), original)
        done.append(f"{kind.__name__[1:]} in {step}")
        if not (scratch / "checkpoints" / str(step) / "manifest.json").exists():
            unfinished.add(step)
    story = f"seed {seed}: " + ", ".join(done)

    whole = [step for step in STEPS if step not in hurt]
    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        Checkpointer(scratch / "checkpoints", Checkpointing(), events=EventLog(scratch)) as checkpointer,
    ):
        try:
            step = checkpointer.latest_step()
        except RunError as error:
            assert not whole and unfinished != set(hurt), (story, error)
        else:
            assert step == max(whole, default=None), (story, step)
        if whole:
            state, position = checkpointer.restore(*layout(state_at(0)))
            assert same(state, max(whole)), story
            assert position == {"step": max(whole), "seen": [max(whole), 0.5]}, story
    told = {event["step"]: event["kind"] for event in read_events(scratch)}
    expected = {step: "unfinished_checkpoint" if step in unfinished else "damaged_checkpoint" for step in hurt}
    assert told == expected, (story, told)
    assert all(f"step {step} " in said.getvalue() for step in hurt), (story, said.getvalue())
    return story
