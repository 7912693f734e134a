"""Contrastive losses against plain numpy, and against themselves on more devices and in other parts."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.objectives.similarity import info_nce, sigmoid_pairs
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.rules import named_sharding, use_mesh

BATCH, SPACE = 32, 4
LOSSES: dict[str, Callable] = {
    "softmax": info_nce,
    "softmax and others": lambda q, k, w, rows: info_nce(q, k, w, rows=rows, others=True),
    "sigmoid": sigmoid_pairs,
}


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries near their keys, and weights of which some are 0 and some are not 1."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(BATCH, SPACE)).astype(np.float32)
    queries = (keys + rng.normal(size=keys.shape)).astype(np.float32)
    return queries, keys, np.where(np.arange(BATCH) % 5 == 3, 0, 1 + np.arange(BATCH) % 2).astype(np.float32)


def by_hand(kind: str, queries, keys, weights) -> tuple[float, float]:
    """Loss and firsts from the whole matrix, in float64, row by row."""
    queries, keys, loss, first = queries.astype(np.float64), keys.astype(np.float64), 0.0, 0.0
    there = [j for j in range(len(keys)) if weights[j] > 0]
    for i in there:
        own, others = queries[i] @ keys[i], [queries[i] @ keys[j] for j in there if j != i]
        if kind == "sigmoid":
            loss += weights[i] * (np.log1p(np.exp(-own)) + sum(np.log1p(np.exp(other)) for other in others))
        else:
            if kind == "softmax and others":
                others += [queries[i] @ queries[j] for j in there if j != i]
            loss += weights[i] * (np.log(np.exp(own) + sum(map(np.exp, others))) - own)
        first += weights[i] * (own >= max(others))
    return loss, first


def on_devices(kind: str, devices: int, rows: int) -> dict:
    """Loss, firsts and gradients on a mesh of so many devices, in parts of so many rows."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])

    def value(queries, keys, weights):
        sums = LOSSES[kind](queries, keys, weights, rows=rows)
        return sums.loss, sums.first

    with use_mesh(mesh):
        placed = [jax.device_put(x, named_sharding(("batch", None)[: x.ndim], x.shape, mesh)) for x in drawn()]
        compiled = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True)).lower(*placed).compile()
        (loss, first), slopes = compiled(*placed)
    largest = max(_sizes(compiled.as_text()))
    return {"loss": float(loss), "first": float(first), "slopes": list(map(np.asarray, slopes)), "largest": largest}


def _sizes(program: str) -> list[int]:
    """Numbers of elements of the float32 arrays of a compiled program."""
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


def differences() -> dict:
    """Every loss on 1, 2, 4 and 8 devices, whole and in parts, against one device and the whole."""
    report = {}
    for kind in LOSSES:
        whole = on_devices(kind, 1, BATCH)
        for devices in (1, 2, 4, 8):
            for rows in (BATCH, 8):
                found = on_devices(kind, devices, rows)
                pairs = zip(found["slopes"], whole["slopes"], strict=True)
                slopes = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
                report[f"{kind}, {devices} devices, {rows} rows"] = {
                    "loss": abs(found["loss"] / whole["loss"] - 1),
                    "slopes": float(max(slopes)),
                    "first": found["first"] - whole["first"],
                    "largest": found["largest"],
                }
    return report


def checked(kind: str, rows: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ours and by hand."""
    sums = LOSSES[kind](*map(jnp.asarray, drawn()), rows=rows)
    return (float(sums.loss), float(sums.first)), by_hand(kind, *drawn())
