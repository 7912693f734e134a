"""FLOPs and memory of training, by part, from a model's configuration alone.

Two FLOPs a multiply-add; backward is twice forward; softmax, norms and activations are left out (PaLM, appendix B).
Causal attention looks at half of the length on average. 6 N D stands beside the sum, because laws are fitted in it.
"""

import dataclasses

from pretrain.core.errors import check
from pretrain.models.config import TransformerConfig, flops_per_token
from pretrain.plan.shapes import Parameters, count_parameters

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_MOMENTS = 2  # float32 each
# Values a token a layer that backward needs, in units of embed, of mlp and of heads * length (Korthikanti et al. 2022,
# section 4.1, for a pre-norm block without dropout).
SAVED_EMBED, SAVED_MLP, SAVED_SCORES = 8, 2, 2


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one token.

    Attributes:
        attention_projections, attention_scores, mlp, head: matrix products of these parts.
        params: N with embeddings.
    """

    attention_projections: int
    attention_scores: int
    mlp: int
    head: int
    params: int

    @property
    def forward(self) -> int:
        """All parts."""
        return self.attention_projections + self.attention_scores + self.mlp + self.head

    @property
    def training(self) -> int:
        """Forward and backward."""
        return 3 * self.forward

    @property
    def training_without_scores(self) -> int:
        """Forward and backward of everything with parameters: what 6 N D estimates."""
        return 3 * (self.forward - self.attention_scores)

    @property
    def six_n(self) -> int:
        """6 N."""
        return 6 * self.params


def count_flops(config: TransformerConfig, length: int) -> Flops:
    """FLOPs of a token in causal training at a sequence length."""
    check(length >= 1, f"the sequence length must be at least 1, got {length}")
    q, kv = config.num_heads * config.query_dim, config.num_kv_heads * config.query_dim
    projections = config.num_layers * 2 * config.embed_dim * (2 * q + 2 * kv)
    mlp = config.num_layers * 2 * (3 if config.is_gated else 2) * config.embed_dim * config.mlp_dim
    scores = config.num_layers * 2 * (2 * q * length // 2)
    head = 2 * config.embed_dim * config.vocab_size
    flops = Flops(projections, scores, mlp, head, count_parameters(config).total)
    assert flops.training == flops_per_token(config, length)  # what the training loop's MFU is made of
    return flops


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
        "minimal": (SAVED_EMBED - 3) * c.embed_dim + (1 + c.is_gated) * c.mlp_dim,
        "full": c.embed_dim,
    }[c.remat]
    activations = tokens * (c.num_layers * per_layer * compute_bytes + 2 * 4 * c.vocab_size)
    return Memory(size, size, ADAM_MOMENTS * 4 * counts.total, activations)


def describe(config: TransformerConfig, length: int) -> dict:
    """Parameters and FLOPs as plain values, for `pretrain describe`."""
    counts: Parameters = count_parameters(config)
    flops = count_flops(config, length)
    return {
        "parameters": {"total": counts.total, "active": counts.total, **dataclasses.asdict(counts)},
        "flops_per_token": {
            **{name: value for name, value in dataclasses.asdict(flops).items() if name != "params"},
            "forward": flops.forward, "training": flops.training, "6N": flops.six_n,
        },
        "length": length,
    }  # fmt: skip
