"""What a model writes down of recordings, and how much of it is wrong: greedy decoding and the word error rate.

Axes: B batch · T samples · L text.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def transcribe(
    module: Any, samples_BT: jax.Array, bos_id: int, eos_id: int, *, vocab_size: int, length: int
) -> jax.Array:
    """The likeliest next token, one after another, int32 [batch, length]: EOS from the end on; traceable.

    The decoder reads all of a text anew for each token: transcripts are short beside what is heard.

    Args:
        module: a `SpeechTransformer`.
        samples_BT: int16, at 16 kHz.
        bos_id, eos_id: of the tokenizer.
        vocab_size: of the tokenizer; a model has some more rows, for no token.
        length: tokens of a transcript, at most.
    """
    batch = samples_BT.shape[0]
    memory_BSD = module.listen(samples_BT)
    known_BL = jnp.ones((batch, length), jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(length), known_BL.shape)

    def write(place: jax.Array, tokens_BL: jax.Array) -> jax.Array:
        """Tokens behind BOS, with one more at `place`."""
        hidden_BLD = module.put_down(memory_BSD, (tokens_BL[:, :-1], known_BL, positions_BL))
        logits_BV = module.logits(hidden_BLD[:, place][:, None])[:, 0, :vocab_size]
        next_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        ended_B = (place > 0) & (tokens_BL[:, place] == eos_id)
        return tokens_BL.at[:, place + 1].set(jnp.where(ended_B, eos_id, next_B))

    begun_BL = jnp.zeros((batch, length + 1), jnp.int32).at[:, 0].set(bos_id)
    return jax.lax.fori_loop(0, length, write, begun_BL)[:, 1:]


def word_errors(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Words to put in, take out or exchange, at least, to make `wanted` of `found` (Levenshtein 1966)."""
    costs = np.arange(len(wanted) + 1)
    for row, word in enumerate(found, start=1):
        exchanged = costs[:-1] + (np.array(wanted, object) != word)
        least = np.concatenate([[row], np.minimum(exchanged, costs[1:] + 1)])
        steps = np.arange(len(least))
        costs = np.minimum.accumulate(least - steps) + steps  # putting in words, from left to right
    return int(costs[-1])
