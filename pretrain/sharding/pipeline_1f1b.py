"""A pipeline's backward pass in the order of 1F1B: each stage holds as many microbatches as there are stages, not all.

One forward, one backward (PipeDream-flush: Narayanan et al. 2021, arXiv:2006.09503): a microbatch goes back as soon as
it is through, so stage s of S holds the inputs of 2 (S - 1 - s) + 1 microbatches whatever their number. The original
needs the loss of each microbatch inside the pipeline. Here the forward pass runs first and keeps what entered the first
stage; then the schedule runs forward *and* backward with the derivatives that the loss gave. So every loss goes with
it, one over the whole batch as well, for one more forward pass. Of M + 2 (S - 1) ticks, 2 (S - 1) are idle.

Axes: S stages · M microbatches · K of them held · B rows of one · L length · D embed · T ticks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.sharding.rules import shard_map

AXIS = "stage"


def with_1f1b(forward: Callable, run_piece: Callable, stages: int, count: int) -> Callable:
    """`forward` with this backward pass.

    Args:
        forward: (pieces [1, S, C, ...], x_MBLD, by_row [M, B, ...], shared) -> (y_SMBLD, sums [S, 1, C, ...]); what it
            gives for the last stage counts.
        run_piece: (piece [C, ...], x_BLD, by_row [B, ...], shared) -> (y_BLD, sums), the work of a stage.
        stages, count: S and M.
    """
    everywhere, on_stage = PartitionSpec(), PartitionSpec(AXIS)

    def back(inputs, cotangents):
        work = shard_map(
            functools.partial(_stage, run_piece, stages, count),
            in_specs=(on_stage, PartitionSpec(None, AXIS), everywhere, everywhere, everywhere, on_stage, on_stage),
            out_specs=on_stage,
            axes={AXIS},
        )
        d_pieces, dx_SMBLD, d_rows, d_shared = work(jnp.arange(stages), *inputs, *cotangents)
        pieces, _, by_row, shared = inputs
        return (
            _with_floats(pieces, [x[None] for x in d_pieces], keep=False),
            dx_SMBLD[0],
            _with_floats(by_row, [x.sum(0) for x in d_rows], keep=False),
            _with_floats(shared, [x.sum(0) for x in d_shared], keep=False),
        )

    call = jax.custom_vjp(forward)
    call.defvjp(lambda *inputs: (forward(*inputs), inputs), back)
    return call


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _floats(tree: Any) -> list[jax.Array]:
    """The leaves that have derivatives."""
    return [x for x in jax.tree.leaves(tree) if _is_float(x)]


def _with_floats(tree: Any, values: list[jax.Array], keep: bool = True) -> Any:
    """`tree` with these for its `_floats`; its other leaves are kept, or None."""
    new = iter(values)
    return jax.tree.map(lambda x: next(new) if _is_float(x) else x if keep else None, tree)


def _stage(run_piece, stages: int, count: int, stage_1, pieces, x_MBLD, by_row, shared, dy_1MBLD, d_sums):
    """One stage's work over all ticks: derivatives of its piece, what came in, rows and what is shared, each [1, ...].

    At tick t, stage s takes microbatch t - s forward and microbatch t - 2 (S - 1) + s backward.
    """
    stage, dy_MBLD = stage_1[0], dy_1MBLD[0]
    piece, d_sums = jax.tree.map(lambda w: w[0, 0], pieces), jax.tree.map(lambda x: x[0, 0], d_sums)
    held, after = 2 * stages - 1, 2 * (stages - 1)

    def pick(tree, index):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)

    def turn(number):
        return jnp.clip(number, 0, count - 1), (number >= 0) & (number < count)

    def do_tick(carry, tick):
        (arrived_BLD, d_arrived_BLD), held_KBLD, (d_piece, d_rows, d_shared) = carry
        ahead, is_real = turn(tick - stage)
        x_BLD = jnp.where(stage == 0, pick(x_MBLD, ahead), arrived_BLD)
        held_KBLD = held_KBLD.at[ahead % held].set(jnp.where(is_real, x_BLD, held_KBLD[ahead % held]))
        y_BLD, _ = run_piece(piece, x_BLD, pick(by_row, ahead), shared)

        back, is_real = turn(tick - after + stage)
        rows = pick(by_row, back)
        dy_BLD = jnp.where(stage == stages - 1, pick(dy_MBLD, back), d_arrived_BLD)
        _, pull = jax.vjp(
            lambda p, x, r, s: run_piece(_with_floats(piece, p), x, _with_floats(rows, r), _with_floats(shared, s)),
            _floats(piece), held_KBLD[back % held], _floats(rows), _floats(shared),
        )  # fmt: skip
        more = jax.tree.map(lambda x: jnp.where(is_real, x, 0), pull((dy_BLD, d_sums)))
        d_piece, d_shared = jax.tree.map(jnp.add, (d_piece, d_shared), (more[0], more[3]))
        d_rows = [d_MB.at[back].add(d_B) for d_MB, d_B in zip(d_rows, more[2], strict=True)]
        passed = (
            jax.lax.ppermute(y_BLD, AXIS, [(i, (i + 1) % stages) for i in range(stages)]),
            jax.lax.ppermute(more[1], AXIS, [(i, (i - 1) % stages) for i in range(stages)]),
        )
        return (passed, held_KBLD, (d_piece, d_rows, d_shared)), more[1]

    blank_BLD = jnp.zeros_like(x_MBLD[0])
    held_KBLD = jnp.zeros((held, *blank_BLD.shape), blank_BLD.dtype)
    sums = jax.tree.map(jnp.zeros_like, (_floats(piece), _floats(by_row), _floats(shared)))
    begin = (blank_BLD, blank_BLD), held_KBLD, sums
    (_, _, sums), dx_TBLD = jax.lax.scan(do_tick, begin, jnp.arange(count + after))
    d_piece, d_rows, d_shared = jax.tree.map(lambda x: x[None], sums)
    return d_piece, dx_TBLD[after:][None], d_rows, d_shared
