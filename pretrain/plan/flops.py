"""Memory of training by part, from a model's configuration alone."""

import dataclasses

from pretrain.models.config import TransformerConfig
from pretrain.plan.shapes import count_parameters

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_MOMENTS = 2  # float32 each
# Values a token a layer that backward needs, in units of embed, of mlp and of heads * length (Korthikanti et al. 2022,
# section 4.1, for a pre-norm block without dropout).
SAVED_EMBED, SAVED_MLP, SAVED_SCORES = 8, 2, 2


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of training on all devices together, by formula.

    Attributes:
        params, gradients, optimizer: of the state and its change.
        activations: kept for the backward pass under the remat policy, with one batch's logits.
    """

    params: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.params + self.gradients + self.optimizer + self.activations


def count_memory(config: TransformerConfig, tokens: int, length: int, *, compute_bytes: int = 2) -> Memory:
    """Memory of one step on `tokens` tokens at once.

    Args:
        config: the model; its remat policy decides what is kept.
        tokens: of a microbatch, over all devices.
        length: of a sequence.
        compute_bytes: of an activation.
    """
    c, counts = config, count_parameters(config)
    size = counts.total * BYTES[c.param_dtype]
    per_layer = {
        "none": SAVED_EMBED * c.embed_dim + (SAVED_MLP + c.is_gated) * c.mlp_dim + SAVED_SCORES * c.num_heads * length,
        "minimal": c.embed_dim + c.num_heads * c.query_dim + (1 + c.is_gated) * c.mlp_dim,
        "named": c.embed_dim + c.num_heads * c.query_dim + (1 + c.is_gated) * c.mlp_dim,  # at most, roughly
        "full": c.embed_dim,
        "offload": 0,
    }[c.remat]
    activations = tokens * (c.num_layers * per_layer * compute_bytes + 2 * 4 * c.vocab_size)
    return Memory(size, size, ADAM_MOMENTS * 4 * counts.total, activations)
