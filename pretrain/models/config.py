"""What a Transformer is made of: one frozen config for the whole family; every choice is a gin binding."""

import dataclasses
import math
from typing import Literal

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

Remat = Literal["none", "minimal", "full"]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and choices of a Transformer.

    Attributes:
        vocab_size: rows of the embedding; None takes the tokenizer's size, rounded up to a multiple of 128.
        num_layers, embed_dim, num_heads, mlp_dim: the usual sizes.
        kv_heads: key/value heads (grouped-query attention, Ainslie et al. 2023); None = num_heads.
        head_dim: size of a head; None = embed_dim // num_heads.
        max_length: longest sequence; bounds learned positions and the decoding cache.
        norm: "rmsnorm" (Zhang and Sennrich 2019) or "layernorm", before each sub-layer and after the last.
        norm_epsilon: added to the variance.
        positions: "rotary" (Su et al. 2021), "learned" or "none".
        rope_theta: base of the rotary wavelengths.
        activation: "swiglu", "geglu" (Shazeer 2020; three matrices), "gelu", "relu" or "relu2" (two).
        use_bias: biases in projections and LayerNorm.
        tie_embeddings: the output head is the transposed embedding.
        logit_softcap: c * tanh(logits / c) when set (Gemma 2).
        qk_norm: RMSNorm on queries and keys of each head (Dehghani et al. 2023).
        init_scale: standard deviation of matrices; None = 1/sqrt(fan in). Output projections are divided by
            sqrt(2 * num_layers) (GPT-2, section 2.3).
        parametrization: "standard"; "mup", whose learning rate transfers over width; "completep", over depth too. See
            `models.parametrization`.
        base_embed_dim, base_num_layers: shape of the proxy at which the learning rate was found.
        remat: what the backward pass computes again: nothing, all but matrix products, or the whole layer.
        scan_unroll: layers per step of the scan; -1 unrolls all (faster to run, slower to compile).
        param_dtype, compute_dtype: "auto" for compute is bfloat16 where the hardware has it, else float32.
        attention: "xla", "cudnn" (flash attention on NVIDIA GPUs), or "auto" by hardware and dtype.
    """

    vocab_size: int | None = None
    num_layers: int = 4
    embed_dim: int = 256
    num_heads: int = 4
    mlp_dim: int = 688
    kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int = 1024
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_epsilon: float = 1e-6
    positions: Literal["rotary", "learned", "none"] = "rotary"
    rope_theta: float = 10_000.0
    activation: Literal["swiglu", "geglu", "gelu", "relu", "relu2"] = "swiglu"
    use_bias: bool = False
    tie_embeddings: bool = True
    logit_softcap: float | None = None
    qk_norm: bool = False
    init_scale: float | None = None
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    base_embed_dim: int = 128
    base_num_layers: int = 4
    remat: Remat = "none"
    scan_unroll: int = 1
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "xla", "cudnn"] = "auto"

    def __post_init__(self):
        check_fields(self)
        positive = ("num_layers", "embed_dim", "num_heads", "mlp_dim", "max_length", "norm_epsilon", "rope_theta",
                    "base_embed_dim", "base_num_layers")  # fmt: skip
        for name in (*positive, "vocab_size", "kv_heads", "head_dim", "logit_softcap", "init_scale"):
            value = getattr(self, name)
            check(value is None or value > 0, f"TransformerConfig.{name} must be > 0, got {value!r}")
        check(
            self.scan_unroll == -1 or self.scan_unroll >= 1,
            f"TransformerConfig.scan_unroll must be >= 1, or -1 for all layers; got {self.scan_unroll}",
        )
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"TransformerConfig: num_heads ({self.num_heads}) must be a multiple of kv_heads ({self.kv_heads})",
        )
        check(
            self.head_dim is not None or self.embed_dim % self.num_heads == 0,
            f"TransformerConfig: embed_dim ({self.embed_dim}) must be a multiple of num_heads ({self.num_heads}), "
            "or head_dim must be set",
        )
        check(
            self.positions != "rotary" or self.query_dim % 2 == 0,
            "TransformerConfig: rotary positions need an even head_dim",
        )

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.num_heads

    @property
    def query_dim(self) -> int:
        """Size of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def width_ratio(self) -> float:
        """Width over the base's, where the parametrisation asks; else 1."""
        return 1.0 if self.parametrization == "standard" else self.embed_dim / self.base_embed_dim

    @property
    def depth_ratio(self) -> float:
        """Depth over the base's, where the parametrisation asks; else 1."""
        return self.num_layers / self.base_num_layers if self.parametrization == "completep" else 1.0

    @property
    def embedding_scale(self) -> float:
        """Standard deviation of initial embeddings; with "mup" that of the base shape."""
        return self.init_scale or math.sqrt(self.width_ratio / self.embed_dim)

    def output_scale(self, inputs: int) -> float:
        """Standard deviation of the initial matrix that ends a residual branch, from `inputs` values."""
        depth = self.num_layers / self.depth_ratio
        return (self.init_scale or 1 / math.sqrt(inputs)) / math.sqrt(2 * depth)

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate, hence three matrices."""
        return self.activation in ("swiglu", "geglu")

    def with_vocab(self, vocab_size: int) -> "TransformerConfig":
        """This config with a vocabulary of at least `vocab_size`, padded so that it splits evenly over devices."""
        if self.vocab_size is None:
            return dataclasses.replace(self, vocab_size=-(-vocab_size // 128) * 128)
        check(
            self.vocab_size >= vocab_size,
            f"TransformerConfig.vocab_size is {self.vocab_size}, but the tokenizer has {vocab_size} tokens",
        )
        return self
