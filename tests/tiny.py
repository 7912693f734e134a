"""The smallest things that are still real: a model, packed batches, a corpus, and the gin file of a run of seconds."""

import functools
import importlib.metadata
import json
import os
import pathlib
import random
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from pretrain.core.objective import ModelNeeds
from pretrain.core.trees import map_named
from pretrain.models.build import PLAIN, build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.functional import FunctionalModel
from pretrain.sharding.rules import MESH_AXES

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY_GIN = ROOT / "tests" / "tiny.gin"
VOCAB = 64
# XLA flags for small programs on the CPU. The emitters of jaxlib 0.10 can be left out; later ones take no such flag.
FAST_TO_COMPILE = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"

CONFIG = TransformerConfig(
    vocab_size=VOCAB,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    kv_heads=2,
    mlp_dim=48,
    max_length=160,
    compute_dtype="float32",
)


@functools.lru_cache(maxsize=64)
def model(config: TransformerConfig = CONFIG, needs: ModelNeeds = PLAIN) -> FunctionalModel:
    """The model of a config, as pure functions, with what an objective needs."""
    return build_model(config, needs)


@functools.lru_cache(maxsize=64)
def params(config: TransformerConfig = CONFIG, needs: ModelNeeds = PLAIN, seed: int = 0) -> dict:
    """Parameters whose norms and biases are not at their initial ones and zeros, so that a test sees them."""
    rng = np.random.default_rng(seed)

    def value(name, shape):
        drawn = 0.3 * rng.normal(size=shape.shape) + name.endswith("scale")
        return jnp.asarray(drawn if name.endswith(("scale", "bias")) else drawn / 2, jnp.float32)

    return map_named(value, model(config, needs).shapes)


def packed_rows(lengths: list[list[int]], length: int, *, vocab: int = VOCAB, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed rows as a loader makes them: `lengths[row]` are the lengths of the documents in a row; the rest is pad."""
    rng = np.random.default_rng(seed)
    names = ("tokens", "segment_ids", "positions", "first_inputs", "source_ids")
    rows = {name: np.zeros((len(lengths), length), np.int32) for name in names}
    for row, documents in enumerate(lengths):
        start = 0
        for segment, size in enumerate(documents, start=1):
            span = slice(start, start + size)
            rows["tokens"][row, span] = rng.integers(4, vocab, size)
            rows["segment_ids"][row, span] = segment
            rows["positions"][row, span] = np.arange(size)
            rows["first_inputs"][row, start] = 3
            start += size
        assert start <= length
    return rows


UNEVEN = [[16], [5, 7], [3], [2, 9, 4]]  # rows of very different weight, three of them packed
WORDS = "the cat dog sat ran on under a mat tree quickly slowly def return import class self"


def abstract_mesh(**ways: int) -> AbstractMesh:
    """The mesh of so many devices along each axis, without the devices, as `make_mesh` would lay it out."""
    sizes = tuple(ways.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def write_corpus(path: pathlib.Path, documents: int = 60, seed: int = 0) -> pathlib.Path:
    """JSONL documents of a few dozen words."""
    chosen = random.Random(seed)
    words = WORDS.split()
    lines = [
        json.dumps({"text": " ".join(chosen.choice(words) for _ in range(chosen.randint(15, 60))) + "."})
        for _ in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def run_cli(*arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
    """`python -m pretrain` in its own process, as a person would run it."""
    return subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env={**os.environ, **environment},
    )
