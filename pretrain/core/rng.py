"""Randomness by purpose: every random choice names its seed, its purpose and its position, and depends on nothing else.

Host code (numpy) and device code (jax) derive their streams the same way, so a restart, another number of workers or
another mesh cannot change what is drawn.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax


def purpose_id(purpose: str) -> int:
    """A stable 31-bit integer for a purpose name such as "init", "dropout" or "shuffle"."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=4).digest(), "little") & 0x7FFFFFFF


def host_rng(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A numpy generator for (seed, purpose, position...), e.g. `host_rng(seed, "shuffle", epoch)`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose_id(purpose), *position])))


def device_key(seed: int, purpose: str) -> "jax.Array":
    """A jax key for (seed, purpose); fold the step in with `jax.random.fold_in`."""
    import jax  # here, so that processes that only prepare data do without it

    return jax.random.fold_in(jax.random.key(seed), purpose_id(purpose))
