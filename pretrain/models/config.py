"""What a Transformer is made of: one frozen config for the whole family; every choice is a gin binding.

Long choices have a config of their own: `RopeScaling` (longer contexts), `Experts` (mixture of experts), `Vision` (an
encoder of pictures), `Towers` (one of pictures beside one of text).
"""

import dataclasses
import math
from typing import Literal

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.models.vision_config import Towers, Vision

REMAT_NAMES = ("query", "key", "value", "attention", "attention_out", "gate", "up", "mlp_out")
MINIMAL = ("attention", "gate", "up")
MatrixPart = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]
Remat = Literal["none", "minimal", "named", "full", "offload"]
POSITIVE = (
    "num_layers", "embed_dim", "num_heads", "mlp_dim", "mlp_chunks", "vocab_chunks", "max_length", "norm_epsilon",
    "rope_theta", "base_embed_dim", "base_num_layers", "vocab_size", "encoder_layers", "kv_heads", "head_dim",
    "embedding_dim", "logit_softcap", "init_scale", "embedding_init_scale", "relative_buckets", "relative_distance",
    "sliding_window", "embedding_multiplier", "logit_multiplier", "attention_scale", "attention_softcap",
)  # fmt: skip


@gin.configurable
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary wavelengths are stretched for sequences longer than those a model was trained on.

    Attributes:
        kind: "linear" (position interpolation, Chen et al. 2023), "ntk" (a larger base, bloc97 2023), "yarn" (Peng et
            al. 2023) or "llama3" (Llama team 2024).
        factor: how many times longer.
        original_length: length of the first training, which "yarn" and "llama3" measure wavelengths against.
        slow, fast: rotations within `original_length` at or below which a wavelength is stretched by the whole factor,
            and at or above which it stays: 1 and 32 in "yarn", 1 and 4 in "llama3".
    """

    kind: Literal["linear", "ntk", "yarn", "llama3"] = "llama3"
    factor: float = 8.0
    original_length: int = 8192
    slow: float = 1.0
    fast: float = 4.0

    def __post_init__(self):
        check_fields(self)
        check(self.factor >= 1, f"RopeScaling.factor must be >= 1, got {self.factor}")
        check(self.original_length > 0, f"RopeScaling.original_length must be > 0, got {self.original_length}")
        check(0 < self.slow < self.fast, f"RopeScaling: 0 < slow < fast must hold, got {self.slow} and {self.fast}")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP (Shazeer et al. 2017; Fedus et al. 2021; Dai et al. 2024).

    Attributes:
        num_experts, top_k: experts, and how many of them a token is sent to.
        mlp_dim: hidden size of one expert; None = `TransformerConfig.mlp_dim`.
        shared: experts every token goes through beside these, as one MLP of `shared * mlp_dim`.
        dense_layers: first layers that keep a plain MLP of `TransformerConfig.mlp_dim`.
        scores: "softmax" over all experts, or "sigmoid" of each (DeepSeek-V3).
        normalize: the chosen experts' scores are divided by their sum (Mixtral's softmax over the chosen).
        scale: factor on the routed experts' output.
        capacity_factor: room of an expert over the even share of a row's tokens, what exceeds it is dropped (GShard);
            None drops nothing. First choices go first, so with top_k > 1 a later token's first choice can take the room
            of an earlier one's second: generation, which sees no later tokens, then differs a little from training.
        balance: coefficient of the load-balance loss, by row (DeepSeek-V3, section 2.1.2).
        router_z: coefficient of the squared log-partition of the router (Zoph et al. 2022).
        bias_rate: step of each expert's selection bias towards even load, without a loss (Wang et al. 2024); 0: none.
    """

    num_experts: int = 8
    top_k: int = 2
    mlp_dim: int | None = None
    shared: int = 0
    dense_layers: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    capacity_factor: float | None = None
    balance: float = 0.01
    router_z: float = 0.0
    bias_rate: float = 0.0

    def __post_init__(self):
        check_fields(self)
        check(1 <= self.top_k <= self.num_experts,
              f"Experts.top_k must be from 1 to num_experts ({self.num_experts}), got {self.top_k}")  # fmt: skip
        for name in ("shared", "dense_layers", "balance", "router_z", "bias_rate"):
            check(getattr(self, name) >= 0, f"Experts.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("mlp_dim", "capacity_factor", "scale"):
            value = getattr(self, name)
            check(value is None or value > 0, f"Experts.{name} must be > 0, got {value}")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and choices of a Transformer.

    Attributes:
        architecture: "decoder" (GPT), "encoder" (BERT), "encoder_decoder" (T5), "embeddings" (word vectors: no layers
            at all), "vision" (an encoder of pictures) or "two_towers" (one of pictures beside one of text).
        vocab_size: rows of the embedding; None takes the tokenizer's size, rounded up to a multiple of 128.
        num_layers, embed_dim, num_heads, mlp_dim: the usual sizes.
        encoder_layers: layers of an encoder-decoder's encoder; None = num_layers.
        kv_heads: key/value heads (grouped-query attention, Ainslie et al. 2023); None = num_heads.
        head_dim: size of a head; None = embed_dim // num_heads.
        embedding_dim: columns of the embedding, projected to embed_dim (ELECTRA's small models); None = embed_dim.
        max_length: longest sequence; bounds learned positions and the decoding cache.
        token_types: rows of a table of segment types (BERT: 2); 0 for none.
        norm: "rmsnorm" (Zhang and Sennrich 2019) or "layernorm".
        norm_position: "pre" (before each sub-layer, and after the last), "post" (after each residual sum: BERT) or
            "sandwich" (before and after each sub-layer, Ding et al. 2021).
        norm_epsilon: added to the variance.
        embedding_norm: a norm after the embedding (BERT).
        positions: "rotary" (Su et al. 2021), "learned", "sinusoidal" (Vaswani et al. 2017), "relative" (T5's buckets),
            "alibi" (Press et al. 2021) or "none".
        rope_theta: base of the rotary wavelengths.
        rope_scaling: for longer contexts; None for none.
        relative_buckets, relative_distance: T5's buckets, and the distance from which on all share the last.
        sliding_window: how many tokens back (and ahead, in an encoder) a token looks; None for all.
        global_every: with a sliding window, every n-th layer looks at all (Gemma 2); 0 for no layer.
        activation: "swiglu", "geglu" (Shazeer 2020; three matrices), "gelu" (its tanh form), "gelu_erf", "quick_gelu"
            (CLIP), "relu" or "relu2" (two).
        use_bias: biases in projections and LayerNorm.
        key_bias: of keys too, where there are biases. It changes nothing, for a softmax does not see it (Whisper).
        tie_embeddings: the output head is the transposed embedding.
        embedding_multiplier, logit_multiplier: factors on embeddings (Gemma) and on logits (T5: embed_dim ** -0.5).
        logit_softcap: c * tanh(logits / c) when set (Gemma 2).
        qk_norm: RMSNorm on queries and keys of each head (Dehghani et al. 2023).
        attention_scale: factor on attention scores; None = head_dim ** -0.5 (T5: 1).
        attention_softcap: as `logit_softcap`, on attention scores.
        attention_sinks: a learned score of each head for looking at nothing (gpt-oss).
        experts: a mixture of experts in place of the MLP; None for none.
        vision: the encoder of pictures; None for none.
        towers: how it and the text tower meet.
        init_scale: standard deviation of matrices; None = 1/sqrt(fan in). Output projections are divided by
            sqrt(2 * num_layers) (GPT-2, section 2.3). Where `attention_scale` is set, queries make up for it, so that
            attention begins as soft as with the usual one (T5).
        init_rule: how large matrices of a layer begin: "fan_in", as `init_scale` says; "clip", as in transformers'
            CLIPModel: queries, keys, values and the MLP's second matrix (2 * embed_dim * num_layers) ** -0.5,
            attention's last embed_dim ** -0.5, the MLP's first (2 * embed_dim) ** -0.5, and patches as embeddings.
        embedding_init_scale: standard deviation of token embeddings, and of learned positions and types, which are
            added to them; None = as that of matrices (T5: 1).
        parametrization: "standard"; "mup", whose learning rate transfers over width; "completep", over depth too. See
            `models.parametrization`.
        base_embed_dim, base_num_layers: shape of the proxy at which the learning rate was found.
        mlp_chunks: parts of an MLP's hidden values that are computed one after another, to save memory; 1 where they do
            not divide it. Experts have no parts.
        vocab_chunks: parts of the vocabulary that the loss takes one after another, so that logits are never whole.
        remat: what the backward pass computes again: "none"; "minimal", all but attention and the MLP's first products;
            "named", all but `remat_names`; "full", the whole layer from its input; "offload", as "full", with that
            input in the host's memory meanwhile.
        remat_names: of `REMAT_NAMES`.
        scan_unroll: layers per step of the scan; -1 unrolls all (faster to run, slower to compile).
        param_dtype, compute_dtype: "auto" for compute is bfloat16 where the hardware has it, else float32; "float16"
            trains with a loss scale (`train.control.LossScale`).
        attention: "xla", "cudnn" and "splash" (flash attention on NVIDIA GPUs and on TPUs), or "auto" by hardware and
            dtype.
    """

    architecture: Literal["decoder", "encoder", "encoder_decoder", "embeddings", "vision", "two_towers"] = "decoder"
    vocab_size: int | None = None
    num_layers: int = 4
    embed_dim: int = 256
    num_heads: int = 4
    mlp_dim: int = 688
    encoder_layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    embedding_dim: int | None = None
    max_length: int = 1024
    token_types: int = 0
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    norm_epsilon: float = 1e-6
    embedding_norm: bool = False
    positions: Literal["rotary", "learned", "sinusoidal", "relative", "alibi", "none"] = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    sliding_window: int | None = None
    global_every: int = 0
    activation: Literal["swiglu", "geglu", "gelu", "gelu_erf", "quick_gelu", "relu", "relu2"] = "swiglu"
    use_bias: bool = False
    key_bias: bool = True
    tie_embeddings: bool = True
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    attention_sinks: bool = False
    experts: Experts | None = None
    vision: Vision | None = None
    towers: Towers = dataclasses.field(default_factory=Towers)
    init_scale: float | None = None
    init_rule: Literal["fan_in", "clip"] = "fan_in"
    embedding_init_scale: float | None = None
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    base_embed_dim: int = 128
    base_num_layers: int = 4
    mlp_chunks: int = 1
    vocab_chunks: int = 1
    remat: Remat = "none"
    remat_names: tuple[str, ...] = ()
    scan_unroll: int = 1
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"

    def __post_init__(self):
        check_fields(self)
        for name in POSITIVE:
            value = getattr(self, name)
            check(value is None or value > 0, f"TransformerConfig.{name} must be > 0, got {value!r}")
        for name in ("token_types", "global_every"):
            check(getattr(self, name) >= 0, f"TransformerConfig.{name} must be >= 0, got {getattr(self, name)}")
        check(
            self.init_rule == "fan_in" or (self.init_scale is None and self.parametrization == "standard"),
            "TransformerConfig.init_rule = 'clip' has sizes of its own: init_scale must be None, and parametrization "
            "'standard'",
        )
        check(
            self.scan_unroll == -1 or self.scan_unroll >= 1,
            f"TransformerConfig.scan_unroll must be >= 1, or -1 for all layers; got {self.scan_unroll}",
        )
        check(
            set(self.remat_names) <= set(REMAT_NAMES) and bool(self.remat_names) == (self.remat == "named"),
            f"TransformerConfig.remat_names are of {', '.join(REMAT_NAMES)}, and go with remat = 'named'; "
            f"got {self.remat_names} with {self.remat!r}",
        )
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"TransformerConfig: num_heads ({self.num_heads}) must be a multiple of kv_heads ({self.kv_heads})",
        )
        check(
            self.head_dim is not None or self.embed_dim % self.num_heads == 0 or self.architecture == "embeddings",
            f"TransformerConfig: embed_dim ({self.embed_dim}) must be a multiple of num_heads ({self.num_heads}), "
            "or head_dim must be set",
        )
        check(
            self.positions != "rotary" or self.query_dim % 2 == 0 or self.architecture == "embeddings",
            "TransformerConfig: rotary positions need an even head_dim",
        )
        check(
            self.rope_scaling is None or self.positions == "rotary",
            f"TransformerConfig.rope_scaling goes with positions = 'rotary', not {self.positions!r}",
        )
        check(
            self.global_every == 0 or self.sliding_window is not None,
            "TransformerConfig.global_every goes with a sliding_window",
        )
        check(
            self.experts is None or self.experts.dense_layers < self.num_layers,
            f"Experts.dense_layers must leave a layer of the {self.num_layers} to the experts",
        )
        check(
            self.vision is not None or self.architecture not in ("vision", "two_towers"),
            f"architecture = {self.architecture!r} needs TransformerConfig.vision = @Vision()",
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
    def table_dim(self) -> int:
        """Columns of the embedding."""
        return self.embedding_dim or self.embed_dim

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

    def matrix_scale(self, part: MatrixPart, inputs: int) -> float:
        """Standard deviation of a layer's initial matrix from `inputs` values; "out" ends a residual branch."""
        depth = self.num_layers / self.depth_ratio
        if self.init_rule == "clip":
            width = {"attention_in": 2 * depth, "attention_out": 1.0, "mlp_in": 2.0, "mlp_out": 2 * depth}[part]
            return 1 / math.sqrt(width * self.embed_dim)
        scale = self.init_scale or 1 / math.sqrt(inputs)
        return scale / math.sqrt(2 * depth) if part.endswith("out") else scale

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate, hence three matrices."""
        return self.activation in ("swiglu", "geglu")

    @property
    def image_encoder(self) -> "TransformerConfig":
        """The Transformer that `vision` makes of this one."""
        v = self.vision
        sizes = {name: getattr(v, name) or getattr(self, name) for name in ("num_layers", "mlp_dim")}
        if v.embed_dim or v.num_heads:
            sizes |= {"embed_dim": v.embed_dim or self.embed_dim, "num_heads": v.num_heads or self.num_heads}
            sizes |= {"kv_heads": None, "head_dim": None}
        return dataclasses.replace(
            self, architecture="encoder", positions="none", rope_scaling=None, sliding_window=None, global_every=0,
            experts=None, token_types=0, max_length=v.length, **sizes,
        )  # fmt: skip

    @property
    def patch_predictor(self) -> "TransformerConfig":
        """The narrow Transformer that `vision.predictor` puts behind that encoder where patches are hidden."""
        p = self.vision.predictor
        return dataclasses.replace(
            self.image_encoder, num_layers=p.num_layers, embed_dim=p.embed_dim, num_heads=p.num_heads,
            mlp_dim=p.mlp_dim, kv_heads=None, head_dim=None,
        )  # fmt: skip

    def with_vocab(self, vocab_size: int) -> "TransformerConfig":
        """This config with a vocabulary of at least `vocab_size`, padded so that it splits evenly over devices."""
        if self.vocab_size is None:
            return dataclasses.replace(self, vocab_size=-(-vocab_size // 128) * 128)
        check(
            self.vocab_size >= vocab_size,
            f"TransformerConfig.vocab_size is {self.vocab_size}, but the tokenizer has {vocab_size} tokens",
        )
        return self
