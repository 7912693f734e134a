"""Decoding with a key-value cache gives the logits of the whole sequence at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, VOCAB, model, params

VARIANTS = [
    {},
    {"positions": "learned", "norm": "layernorm", "use_bias": True},
    {"qk_norm": True, "kv_heads": 1, "remat": "full", "logit_softcap": 3.0},
    {"positions": "none", "kv_heads": 4, "scan_unroll": -1},
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("parts", [[12], [5, 1, 1, 5]])
def test_cached_logits_are_the_uncached_ones(changes, parts):
    config = dataclasses.replace(CONFIG, **changes)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 12)).astype(np.int32)

    @jax.jit
    def at_once(values):
        module = model(config).module(values)
        positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
        return module.head(module(jnp.asarray(tokens), jnp.ones_like(tokens), positions).hidden)

    @jax.jit
    def step_by_step(values):
        module = model(config).module(values)
        cache, start, outputs = module.init_cache(2, 20), 0, []
        for size in parts:
            hidden, cache = module.decode(jnp.asarray(tokens[:, start : start + size]), cache, jnp.int32(start))
            outputs.append(module.head(hidden))
            start += size
        return jnp.concatenate(outputs, axis=1)

    np.testing.assert_allclose(step_by_step(params(config)), at_once(params(config)), rtol=1e-4, atol=1e-4)


def test_the_cache_is_as_small_as_grouped_heads_allow():
    cache = model().module(params()).init_cache(3, 20)
    assert cache.key_BSKQ.shape == cache.value_BSKQ.shape == (2, 3, 20, CONFIG.kv_heads, 8)


def test_what_lies_beyond_the_offset_does_not_count():
    """Slots after the tokens seen so far hold a padded prompt's leftovers; nobody looks at them."""
    module = model().module(params())
    tokens = np.array([[5, 9, 7]], np.int32)
    clean = module.init_cache(1, 8)
    dirty = jax.tree.map(lambda x: jnp.full_like(x, 37.0), clean)
    y = [module.decode(tokens, cache, jnp.int32(0))[0] for cache in (clean, dirty)]
    np.testing.assert_array_equal(*y)
