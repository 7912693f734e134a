"""Ring attention: keys and values go round the devices that share a sequence, and nobody ever holds all of them.

Liu et al. 2023 (arXiv 2310.01889). The softmax is the online one (Milakov and Gimelshein 2018); the backward pass lets
keys, values and their gradients go round once more, and makes the scores again (Dao et al. 2022).

Causal rows stand in zig-zag order: a sequence is cut into two halves for each of C devices, and device i holds halves i
and 2C - 1 - i. Then each device has the same work at each turn, and needs no causal mask but against its own keys.

Axes: B batch · L queries · S keys · K kv heads · G query heads of each · Q head dimension · N blocks of M queries.
All but B, K and G are parts of one device inside the ring.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pretrain.sharding.rules import current_mesh, partition_spec, shard_map
from pretrain.sharding.zigzag import AXIS, check_length

BLOCK = 512  # queries whose scores exist at a time
MASKED = -1e30  # finite, so that a row with nothing to look at gives a mean and not NaN


class Options(NamedTuple):
    """What is the same for all: devices of the ring, and how scores are made."""

    ways: int
    causal: bool
    scale: float
    softcap: float | None


class Keys(NamedTuple):
    """What goes round: keys, values [batch, kv heads, keys, head dim] and segment ids [batch, keys]."""

    k_BKSQ: jax.Array
    v_BKSQ: jax.Array
    segments_BS: jax.Array


class Queries(NamedTuple):
    """What stays: queries in blocks, their segments, and their order on this device."""

    q_NBKGMQ: jax.Array
    segments_NBM: jax.Array
    order_NM: jax.Array


class Softmax(NamedTuple):
    """An unfinished softmax, float32: weighted sum of values, greatest score, sum of weights relative to it."""

    sum_NBKGMQ: jax.Array
    top_NBKGM: jax.Array
    weight_NBKGM: jax.Array


def ring_attention(
    q_BLHQ: jax.Array,
    k_BSKQ: jax.Array,
    v_BSKQ: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    *,
    causal: bool,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention within segments; [batch, length, heads, head dim].

    Args:
        q_BLHQ, k_BSKQ, v_BSKQ: queries, keys, values; lengths are multiples of the ways of the context axis, of twice
            these where causal.
        segments: int32 ids of queries [batch, length] and of keys [batch, keys].
        causal: keys beyond a query are hidden; queries and keys are in zig-zag order.
        scale: factor on scores.
        softcap: c * tanh(scores / c).

    Raises:
        UserError: a length does not divide.
    """
    mesh = current_mesh()
    ways, heads = mesh.shape[AXIS], q_BLHQ.shape[2]
    for length in (q_BLHQ.shape[1], k_BSKQ.shape[1]):
        check_length(length, ways, causal=causal)
    head_spec = partition_spec(("activation_heads",), (heads,), mesh)
    if head_spec != partition_spec(("activation_kv_heads",), (k_BSKQ.shape[2],), mesh):
        k_BSKQ, v_BSKQ = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k_BSKQ, v_BSKQ))
    spec = lambda x, *axes: partition_spec(axes, x.shape, mesh)  # noqa: E731
    rows, keys = (spec(x, "batch", "length", "activation_heads", None) for x in (q_BLHQ, k_BSKQ))
    ids = tuple(spec(x, "batch", "length") for x in segments)
    options = Options(ways, causal, scale, softcap)
    run = shard_map(functools.partial(_on_device, options), in_specs=(rows, keys, keys, *ids), out_specs=rows)
    return run(q_BLHQ, k_BSKQ, v_BSKQ, *segments)


def _on_device(options: Options, q_BLHQ, k_BSKQ, v_BSKQ, queries_BL, keys_BS) -> jax.Array:
    batch, length, heads, size = q_BLHQ.shape
    kv_heads = k_BSKQ.shape[2]
    block = math.gcd(length // 2 if options.causal else length, BLOCK)
    q_BNMKGQ = q_BLHQ.reshape(batch, -1, block, kv_heads, heads // kv_heads, size)
    segments_NBM = queries_BL.reshape(batch, -1, block).transpose(1, 0, 2)
    queries = Queries(q_BNMKGQ.transpose(1, 0, 3, 4, 2, 5), segments_NBM, jnp.arange(length).reshape(-1, block))
    keys = Keys(k_BSKQ.transpose(0, 2, 1, 3), v_BSKQ.transpose(0, 2, 1, 3), keys_BS)
    y_NBKGMQ = _ring(options, queries, keys)
    return y_NBKGMQ.transpose(1, 0, 4, 2, 3, 5).reshape(q_BLHQ.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(options: Options, queries: Queries, keys: Keys) -> jax.Array:
    return _forward(options, queries, keys)[0]


def _forward(options: Options, queries: Queries, keys: Keys):
    """The ring's result, and what the backward pass needs."""
    shape = queries.q_NBKGMQ.shape
    blank = jnp.zeros(shape[:-1], jnp.float32)
    begun = Softmax(jnp.zeros(shape, jnp.float32), blank + MASKED, blank)
    softmax = _look(options, queries, keys, begun, own=True)

    def turn(carry, count):
        softmax, keys = carry
        keys = _pass_on(options, keys)
        look = lambda q, k, s: _look(options, q, k, s, own=False)  # noqa: E731
        if not options.causal:
            return (look(queries, keys, softmax), keys), None

        def at_earlier(softmax):  # all queries see the first half of keys that began before, none the second
            return look(queries, _first_keys(keys), softmax)

        def at_later(softmax):  # only the second half of queries sees keys of a later device, but all of them
            seen = look(_last(queries), keys, _last(softmax))
            return jax.tree.map(lambda old, new: old.at[-len(new) :].set(new), softmax, seen)

        return (jax.lax.cond(_is_earlier(options, count), at_earlier, at_later, softmax), keys), None

    (softmax, _), _ = jax.lax.scan(turn, (softmax, keys), jnp.arange(1, options.ways))
    y_NBKGMQ = (softmax.sum_NBKGMQ / softmax.weight_NBKGM[..., None]).astype(queries.q_NBKGMQ.dtype)
    log_z_NBKGM = softmax.top_NBKGM + jnp.log(softmax.weight_NBKGM)
    return y_NBKGMQ, (queries, keys, y_NBKGMQ, log_z_NBKGM)


def _backward(options: Options, saved, grad_NBKGMQ):
    """Gradients of queries stay; those of keys and values go round with them, and end where these began."""
    queries, keys, y_NBKGMQ, log_z_NBKGM = saved
    inner_NBKGM = jnp.sum(grad_NBKGMQ.astype(jnp.float32) * y_NBKGMQ.astype(jnp.float32), axis=-1)
    rows = queries, grad_NBKGMQ, inner_NBKGM, log_z_NBKGM
    of_queries, of_keys = _pull(options, rows, keys, own=True)

    def turn(carry, count):
        of_queries, moving = carry
        keys, of_keys = _pass_on(options, moving)
        pull = lambda rows, keys: _pull(options, rows, keys, own=False)  # noqa: E731

        def at_earlier():
            more, (k, v) = pull(rows, _first_keys(keys))
            return more, (_fill(k, of_keys[0]), _fill(v, of_keys[1]))

        def at_later():
            more, more_keys = pull(_last(rows), keys)
            return jnp.zeros_like(of_queries).at[-len(more) :].set(more), more_keys

        if options.causal:
            more = jax.lax.cond(_is_earlier(options, count), at_earlier, at_later)
        else:
            more = pull(rows, keys)
        of_queries, of_keys = jax.tree.map(jnp.add, (of_queries, of_keys), more)
        return (of_queries, (keys, of_keys)), None

    carry = (of_queries, (keys, of_keys))
    (of_queries, (_, of_keys)), _ = jax.lax.scan(turn, carry, jnp.arange(1, options.ways))
    of_k, of_v = _pass_on(options, of_keys)
    k_BKSQ, v_BKSQ, _ = keys
    of_queries = Queries(of_queries.astype(queries.q_NBKGMQ.dtype), None, None)
    return of_queries, Keys(of_k.astype(k_BKSQ.dtype), of_v.astype(v_BKSQ.dtype), None)


_ring.defvjp(_forward, _backward)


def _scores(options: Options, queries: Queries, keys: Keys, own: bool) -> jax.Array:
    """Scores of one block of queries, [batch, kv heads, group, queries, keys] float32."""
    q_BKGMQ, segments_BM, order_M = queries
    product = jnp.einsum("bkgmq,bksq->bkgms", q_BKGMQ, keys.k_BKSQ, preferred_element_type=jnp.float32)
    scores_BKGMS = product * options.scale
    if options.softcap is not None:
        scores_BKGMS = options.softcap * jnp.tanh(scores_BKGMS / options.softcap)
    seen_BMS = segments_BM[:, :, None] == keys.segments_BS[:, None, :]
    if options.causal and own:
        seen_BMS &= order_M[:, None] >= jnp.arange(keys.k_BKSQ.shape[2])
    return jnp.where(seen_BMS[:, None, None], scores_BKGMS, MASKED)


def _look(options: Options, queries: Queries, keys: Keys, softmax: Softmax, own: bool) -> Softmax:
    """The softmax with these keys added."""

    def of_block(block):
        queries, (sum_BKGMQ, top_BKGM, weight_BKGM) = block
        scores_BKGMS = _scores(options, queries, keys, own)
        new_BKGM = jnp.maximum(top_BKGM, jnp.max(scores_BKGMS, axis=-1))
        old_BKGM, scores_BKGMS = jnp.exp(top_BKGM - new_BKGM), jnp.exp(scores_BKGMS - new_BKGM[..., None])
        more_BKGMQ = jnp.einsum(
            "bkgms,bksq->bkgmq", scores_BKGMS.astype(keys.v_BKSQ.dtype), keys.v_BKSQ, preferred_element_type=jnp.float32
        )
        sum_BKGMQ = sum_BKGMQ * old_BKGM[..., None] + more_BKGMQ
        return Softmax(sum_BKGMQ, new_BKGM, weight_BKGM * old_BKGM + jnp.sum(scores_BKGMS, axis=-1))

    return jax.lax.map(of_block, (queries, softmax))


def _pull(options: Options, rows, keys: Keys, own: bool):
    """Gradients, float32: of queries [N, ...], and of keys and values."""
    v_BKSQ = keys.v_BKSQ

    def of_block(carry, row):
        queries, grad_BKGMQ, inner_BKGM, log_z_BKGM = row
        score = lambda q, k: _scores(options, queries._replace(q_NBKGMQ=q), keys._replace(k_BKSQ=k), own)  # noqa: E731
        scores_BKGMS, pull = jax.vjp(score, queries.q_NBKGMQ, keys.k_BKSQ)
        share_BKGMS = jnp.exp(scores_BKGMS - log_z_BKGM[..., None])
        of_share = jnp.einsum("bkgmq,bksq->bkgms", grad_BKGMQ, v_BKSQ, preferred_element_type=jnp.float32)
        of_v = jnp.einsum(
            "bkgms,bkgmq->bksq", share_BKGMS.astype(grad_BKGMQ.dtype), grad_BKGMQ, preferred_element_type=jnp.float32
        )
        of_q, of_k = pull(share_BKGMS * (of_share - inner_BKGM[..., None]))
        return (carry[0] + of_k.astype(jnp.float32), carry[1] + of_v), of_q.astype(jnp.float32)

    zero = jnp.zeros(v_BKSQ.shape, jnp.float32)
    of_keys, of_queries = jax.lax.scan(of_block, (zero, zero), rows)
    return of_queries, of_keys


def _is_earlier(options: Options, count: jax.Array) -> jax.Array:
    """Whether the keys that are here after `count` turns began on a device before this one."""
    return jax.lax.axis_index(AXIS) >= count


def _pass_on(options: Options, tree):
    return jax.lax.ppermute(tree, AXIS, [(i, (i + 1) % options.ways) for i in range(options.ways)])


def _first_keys(keys: Keys) -> Keys:
    half = keys.segments_BS.shape[1] // 2
    return Keys(keys.k_BKSQ[:, :, :half], keys.v_BKSQ[:, :, :half], keys.segments_BS[:, :half])


def _last(tree):
    """The second half of the blocks of queries."""
    return jax.tree.map(lambda x: x[len(x) // 2 :], tree)


def _fill(part_BKSQ: jax.Array, like_BKSQ: jax.Array) -> jax.Array:
    """Zeros after a part, up to the shape of `like_BKSQ`."""
    return jnp.zeros_like(like_BKSQ).at[:, :, : part_BKSQ.shape[2]].set(part_BKSQ)
