"""Pipeline parallelism: each device holds some layers of a stack, and parts of the batch go from stage to stage.

GPipe (Huang et al. 2019) with one round; with R rounds a stage holds R separate pieces of the stack and every
microbatch goes round R times, which divides the idle time by R (interleaved schedule, Narayanan et al. 2021). The
schedule is a loop over ticks in which all stages work at once and then pass their results on; its derivative is the
backward schedule, unless that is 1F1B (`pipeline_1f1b`). Of M microbatches on S stages, (S - 1) of (M R + S - 1) ticks
are idle.

Axes: R rounds · S stages · C layers of a piece · M microbatches · B rows of one · L length · D embed · T ticks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pretrain.core.errors import check
from pretrain.sharding.pipeline_1f1b import AXIS, with_1f1b
from pretrain.sharding.rules import constrain, parallelism, shard_map, ways_of

RunLayers = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


def run_in_stages(run: RunLayers, layers: Any, x_BLD: jax.Array, context: Any) -> tuple[jax.Array, Any]:
    """What `run(layers, x, context)` gives, computed stage by stage.

    Args:
        run: (some layers, hidden states, context) -> hidden states and sums over rows, by layer.
        layers: arrays with a leading axis of all layers.
        x_BLD: hidden states of the whole batch.
        context: tree; what has the batch in front is split like it, the rest is the same for all rows.

    Raises:
        UserError: stages, rounds and microbatches do not fit the stack or the batch.
    """
    stages, rounds, rows = ways_of(AXIS), parallelism().pipeline_rounds, len(x_BLD)
    count = parallelism().pipeline_microbatches or stages
    number = len(jax.tree.leaves(layers)[0])
    check_pipeline(number, rows, stages, rounds, count)
    pieces = jax.tree.map(lambda w: w.reshape(rounds, stages, -1, *w.shape[1:]), layers)
    is_split = lambda x: x.ndim > 1 and len(x) == rows  # noqa: E731
    split = functools.partial(_split, count)
    leaves, structure = jax.tree.flatten(context)
    by_row, shared = [split(x) for x in leaves if is_split(x)], [x for x in leaves if not is_split(x)]

    def run_piece(piece, x_BLD, by_row, shared):
        of_rows, of_all = iter(by_row), iter(shared)
        context = jax.tree.unflatten(structure, [next(of_rows if is_split(x) else of_all) for x in leaves])
        return run(piece, x_BLD, context)

    everywhere, on_stage = PartitionSpec(), PartitionSpec(AXIS)
    work = shard_map(
        functools.partial(_stage, run_piece, (stages, rounds, count)),
        in_specs=(on_stage, PartitionSpec(None, AXIS), everywhere, everywhere, everywhere),
        out_specs=on_stage,
        axes={AXIS},
    )
    work = functools.partial(work, jnp.arange(stages))
    if parallelism().pipeline_schedule == "1f1b":
        work = with_1f1b(work, run_piece, stages, count)
    y_SMBLD, sums = work(pieces, split(x_BLD), by_row, shared)
    sums = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(number, *x.shape[3:]), sums)  # [S, R, C, ...]
    return jnp.moveaxis(y_SMBLD[-1], 0, 1).reshape(x_BLD.shape), sums


def check_pipeline(layers: int, rows: int, stages: int, rounds: int, microbatches: int) -> None:
    """Raises UserError where a stack or a batch cannot be divided over the stages."""
    check(
        layers % (stages * rounds) == 0,
        f"{layers} layers cannot be divided over MeshConfig.stage ({stages}) x Parallelism.pipeline_rounds ({rounds})",
    )
    check(
        rows % microbatches == 0,
        f"{rows} rows of a batch cannot be divided into {microbatches} microbatches of the pipeline: "
        "set Parallelism.pipeline_microbatches to a divisor",
    )
    check(
        rounds == 1 or microbatches % stages == 0,
        f"Parallelism.pipeline_rounds > 1 needs microbatches ({microbatches}) in multiples of the stages ({stages})",
    )


def _split(count: int, x: jax.Array) -> jax.Array:
    """[batch, ...] -> [microbatches, rows of one, ...], each spread over all devices that share the batch."""
    parts = jnp.moveaxis(x.reshape(len(x) // count, count, *x.shape[1:]), 1, 0)
    return constrain(parts, None, "batch", *[None] * (x.ndim - 1))


def last_ticks(stages: int, rounds: int, count: int) -> np.ndarray:
    """The tick at which each microbatch leaves the last stage for good, [microbatches]."""
    group, place = np.divmod(np.arange(count), stages)
    return (group * rounds + rounds - 1) * stages + place + stages - 1


def _stage(run_piece, sizes: tuple[int, int, int], stage_1, pieces, x_MBLD, by_row, shared):
    """One stage's work over all ticks: what a last stage gives [1, M, B, L, D] and its layers' sums [1, R, C, ...].

    Microbatches go round in groups as large as the number of stages; what leaves the last stage comes to the first one
    just when its next round begins.
    """
    stages, rounds, count = sizes
    stage, pieces = stage_1[0], jax.tree.map(lambda w: w[:, 0], pieces)
    ticks = count * rounds + stages - 1

    def pick(tree, index):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)

    def turn(tick):
        """Which round of which microbatch this stage does, and whether it does any."""
        number = tick - stage
        is_real = (number >= 0) & (number < count * rounds)
        number = jnp.clip(number, 0, count * rounds - 1)
        group, place = number // (stages * rounds), number % (stages * rounds)
        return place // stages, group * stages + place % stages, is_real

    def do_tick(carry, tick):
        arrived_BLD, sums = carry
        which, microbatch, is_real = turn(tick)
        x_BLD = jnp.where((stage == 0) & (which == 0), pick(x_MBLD, microbatch), arrived_BLD)
        y_BLD, new = run_piece(pick(pieces, which), x_BLD, pick(by_row, microbatch), shared)
        add = lambda total, more: total.at[which].add(jnp.where(is_real, more, 0))  # noqa: E731
        passed_BLD = jax.lax.ppermute(y_BLD, AXIS, [(i, (i + 1) % stages) for i in range(stages)])
        return (passed_BLD, jax.tree.map(add, sums, new)), y_BLD

    run_piece = jax.checkpoint(run_piece, prevent_cse=False) if parallelism().pipeline_remat else run_piece
    example = (pick(pieces, 0), x_MBLD[0], pick(by_row, 0), shared)
    blank = jax.tree.map(lambda x: jnp.zeros((rounds, *x.shape), x.dtype), jax.eval_shape(run_piece, *example)[1])
    (_, sums), y_TBLD = jax.lax.scan(do_tick, (jnp.zeros_like(x_MBLD[0]), blank), jnp.arange(ticks))
    return y_TBLD[last_ticks(stages, rounds, count)][None], jax.tree.map(lambda x: x[None], sums)
