"""FLOPs of a Transformer by part, from its configuration alone.

Two FLOPs a multiply-add, backward twice forward; softmax, norms and activations are left out (PaLM, appendix B). Causal
attention looks at half of the length on average, as MaxText counts.
"""

import dataclasses

from pretrain.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one token.

    Attributes:
        attention_projections, attention_scores, mlp, head: matrix products of these parts.
    """

    attention_projections: int
    attention_scores: int
    mlp: int
    head: int

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


def count_flops(config: TransformerConfig, length: int) -> Flops:
    """FLOPs of a token in causal training at a sequence length."""
    q, kv = config.num_heads * config.query_dim, config.num_kv_heads * config.query_dim
    return Flops(
        attention_projections=config.num_layers * 2 * config.embed_dim * (2 * q + 2 * kv),
        attention_scores=config.num_layers * 2 * (2 * q * length // 2),
        mlp=config.num_layers * 2 * (3 if config.is_gated else 2) * config.embed_dim * config.mlp_dim,
        head=2 * config.embed_dim * config.vocab_size,
    )
