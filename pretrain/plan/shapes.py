"""Sizes of a model from its shape, and a shape for a wanted size. No arrays are made; works for any size.

`count_parts` knows every model, by the names of its arrays; `count_parameters` plain decoders, from the configuration.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pretrain.core.errors import check
from pretrain.core.trees import named_leaves
from pretrain.models.config import TransformerConfig

DEPTH_AT_768, DEPTH_EXPONENT = 12, 0.76  # runs through 12 x 768 … 80 x 8,192, 96 x 12,288 and 126 x 16,384


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        embedding: token and learned position tables, and an untied output head.
        attention, mlp, norms: of all layers; norms with the last one.
    """

    embedding: int
    attention: int
    mlp: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.mlp + self.norms


TABLES = {"embedding", "position_embedding", "type_embedding", "unembedding", "words", "contexts", "class_token"}


def count_parts(shapes: Mapping[str, Any], config: TransformerConfig) -> dict[str, int]:
    """Parameters of any model by part, `total`, and `active`: without the experts that a token does not go through.

    Args:
        shapes: the model's tree of shapes.
        config: its configuration.
    """
    counts = dict.fromkeys(("total", "active", "embedding", "attention", "mlp", "norms", "heads"), 0)
    idle = 1 - config.experts.top_k / config.experts.num_experts if config.experts else 0
    for name, leaf in named_leaves(shapes).items():
        *folders, last = name.split("/")
        if any(folder.endswith("norm") for folder in folders):
            part = "norms"
        elif last in TABLES or "patch_embedding" in folders:
            part = "embedding"
        else:
            part = next((part for part in ("attention", "cross", "mlp") if part in folders), "heads")
        routed = part == "mlp" and last in ("up", "gate", "down")  # arrays of all experts; a plain MLP's are kernels
        counts["attention" if part == "cross" else part] += leaf.size
        counts["total"] += leaf.size
        counts["active"] += leaf.size - round(idle * leaf.size) * routed
    return counts


def count_parameters(config: TransformerConfig) -> Parameters:
    """Parameters by part, from the configuration alone; equal to what the model allocates."""
    c, embed = config, config.embed_dim
    check(c.vocab_size is not None, "TransformerConfig.vocab_size is not set")
    check(c.architecture == "decoder" and c.experts is None, "plans are made for decoders without experts")
    bias = int(c.use_bias)
    q, kv = c.num_heads * c.query_dim, c.num_kv_heads * c.query_dim
    attention = 2 * embed * q + 2 * embed * kv + bias * (q + 2 * kv + embed)
    matrices = 3 if c.is_gated else 2
    mlp = matrices * embed * c.mlp_dim + bias * ((matrices - 1) * c.mlp_dim + embed)
    norm = embed * (1 + (c.norm == "layernorm" and bias))
    head_norms = 2 * c.query_dim if c.qk_norm else 0
    tables = c.vocab_size * (1 if c.tie_embeddings else 2) + (c.max_length if c.positions == "learned" else 0)
    return Parameters(
        embed * tables, c.num_layers * attention, c.num_layers * mlp, c.num_layers * (2 * norm + head_norms) + norm
    )


def with_width(config: TransformerConfig, layers: int, width: int, head_dim: int) -> TransformerConfig:
    """The same kind of model at another depth and width; the MLP keeps its ratio, in whole multiples of 16."""
    ratio = config.mlp_dim / config.embed_dim
    mlp = max(16, round(ratio * width / 16) * 16)
    grouped = config.num_heads // config.num_kv_heads
    heads = width // head_dim
    fewer = max(1, heads // grouped)
    kv_heads = None if grouped == 1 else max(number for number in range(1, fewer + 1) if heads % number == 0)
    return dataclasses.replace(
        config, num_layers=layers, embed_dim=width, num_heads=heads, kv_heads=kv_heads, mlp_dim=mlp, head_dim=head_dim
    )


def shape_for(params: float, config: TransformerConfig, head_dim: int) -> TransformerConfig:
    """The model of this kind whose size is nearest to `params`, of sensible proportions.

    Depth follows width as in published families (GPT-3, Llama).

    Args:
        params: wanted number of parameters, embeddings included.
        config: kind of model: activation, biases, vocabulary, ratio of MLP and kv heads.
        head_dim: size of a head; the width is a multiple of it.
    """
    check(params > 0, f"params must be > 0, got {params:g}")

    def candidate(heads: int) -> TransformerConfig:
        width = heads * head_dim
        layers = max(2, round(DEPTH_AT_768 * (width / 768) ** DEPTH_EXPONENT))
        return with_width(config, layers, width, head_dim)

    heads = 1
    while count_parameters(candidate(heads)).total < params:
        heads += 1 if heads < 64 else heads // 32
    near = [candidate(number) for number in range(max(1, heads - max(1, heads // 32) - 1), heads + 1)]
    return min(near, key=lambda shape: abs(math.log(count_parameters(shape).total / params)))
