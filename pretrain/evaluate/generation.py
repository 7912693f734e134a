"""Sampling with a key-value cache: temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), or greedy.

Axes: B samples · L length · V vocabulary.
"""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.rng import device_key
from pretrain.models.functional import FunctionalModel, Params

PROMPT_BUCKET = 64  # prompts are padded to a multiple of this, so that few lengths are compiled


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Generation:
    """How text is sampled.

    Attributes:
        max_tokens: most tokens to add.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest; 0 means all.
        top_p: sample among the likeliest that together have this probability; 1 means all.
        seed: of the samples.
        num_samples: continuations per prompt.
        prompts: prompts used when none is given.
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0
    num_samples: int = 1
    prompts: tuple[str, ...] = ("",)

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "prompts", tuple(self.prompts))  # gin gives a list; jit wants a hash
        check(self.max_tokens >= 1, f"max_tokens must be >= 1, got {self.max_tokens}")
        check(self.temperature >= 0, f"temperature must be >= 0, got {self.temperature}")
        check(self.top_k >= 0, f"top_k must be >= 0 (0 means all tokens), got {self.top_k}")
        check(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        check(self.num_samples >= 1, f"num_samples must be >= 1, got {self.num_samples}")
        check(self.seed >= 0, f"seed must be >= 0, got {self.seed}")


def filter_logits(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits with everything outside the top k, and outside the smallest set of probability `top_p`, at -inf.

    The likeliest token always stays. Both limits hold at once, top-k first.
    """
    vocab = logits_BV.shape[-1]
    if 0 < top_k < vocab:
        kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1)[:, ::-1]
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        last_B1 = jnp.sum(before_BV < top_p, axis=-1, keepdims=True) - 1
        logits_BV = jnp.where(logits_BV < jnp.take_along_axis(sorted_BV, last_B1, axis=-1), -jnp.inf, logits_BV)
    return logits_BV


def _choose(logits_BV: jax.Array, key: jax.Array, config: Generation) -> jax.Array:
    if config.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = filter_logits(logits_BV / config.temperature, config.top_k, config.top_p)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "config", "eos_id", "vocab_size"))
def _decode(model: FunctionalModel, params: Params, prompt_BL, prompt_length, config: Generation, eos_id, vocab_size):
    """Generated tokens [samples, max_tokens] (pad after the end), and how many steps were made."""
    module = model.module(params)
    batch = prompt_BL.shape[0]
    cache = module.init_cache(batch, prompt_BL.shape[1] + config.max_tokens)
    key = device_key(config.seed, "generate")

    def next_token(hidden_BD, step):
        logits_BV = module.logits(hidden_BD[:, None])[:, 0, :vocab_size]  # without the rows that pad the vocabulary
        return _choose(logits_BV, jax.random.fold_in(key, step), config)

    hidden_BLD, cache = module.decode(prompt_BL, cache, jnp.int32(0))
    first_B = next_token(jax.lax.dynamic_index_in_dim(hidden_BLD, prompt_length - 1, 1, keepdims=False), 0)
    tokens_BL = jnp.full((batch, config.max_tokens), eos_id, jnp.int32).at[:, 0].set(first_B)

    def unfinished(carry):
        step, last_B, done_B, *_ = carry
        return (step < config.max_tokens) & ~jnp.all(done_B | (last_B == eos_id))

    def extend(carry):
        step, last_B, done_B, tokens_BL, cache = carry
        done_B = done_B | (last_B == eos_id)
        hidden_BLD, cache = module.decode(last_B[:, None], cache, prompt_length + step - 1)
        new_B = jnp.where(done_B, eos_id, next_token(hidden_BLD[:, 0], step))
        return step + 1, new_B, done_B, tokens_BL.at[:, step].set(new_B), cache

    start = (jnp.int32(1), first_B, jnp.zeros(batch, bool), tokens_BL, cache)
    steps, _, _, tokens_BL, _ = jax.lax.while_loop(unfinished, extend, start)
    return tokens_BL, steps


def generate(
    model: FunctionalModel,
    params: Params,
    prompt: np.ndarray,
    config: Generation,
    *,
    eos_id: int,
    vocab_size: int,
    max_length: int,
) -> list[np.ndarray]:
    """Continuations of one prompt.

    Args:
        model, params: a model with `decode`, `head` and `init_cache`.
        prompt: int32 token ids, the start token included; at least one.
        config: how to sample.
        eos_id: token that ends a continuation; it is not returned.
        vocab_size: tokens of the tokenizer; ids at or above it are never drawn.
        max_length: longest sequence the model takes.

    Returns:
        `config.num_samples` arrays of token ids, without the prompt.

    Raises:
        UserError: prompt and continuation do not fit into `max_length`.
    """
    check(
        len(prompt) + config.max_tokens <= max_length,
        f"the prompt has {len(prompt)} tokens and {config.max_tokens} more are asked for, but the model takes "
        f"{max_length} in all: shorten the prompt or lower max_tokens",
    )
    padded = -(-len(prompt) // PROMPT_BUCKET) * PROMPT_BUCKET
    prompt_BL = np.zeros((config.num_samples, padded), np.int32)
    prompt_BL[:, : len(prompt)] = prompt
    tokens_BL, _ = _decode(model, params, prompt_BL, np.int32(len(prompt)), config, eos_id, vocab_size)
    samples = []
    for row in multihost_utils.process_allgather(tokens_BL, tiled=True):
        ends = np.flatnonzero(row == eos_id)
        samples.append(row[: ends[0]] if len(ends) else row)
    return samples
