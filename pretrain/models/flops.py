"""FLOPs of a Transformer by part, from its configuration alone.

Two FLOPs a multiply-add, backward twice forward; softmax, norms and activations are left out (PaLM, appendix B). Causal
attention looks at half of the length on average, as MaxText counts. Of experts, the active ones count.
"""

import dataclasses

from pretrain.core.errors import check
from pretrain.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one token of the input.

    Attributes:
        attention_projections, attention_scores, mlp, head: matrix products of these parts; of pictures, `head` is the
            embedding of patches and, where some are hidden, what says them.
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


def count_flops(
    config: TransformerConfig, length: int, targets: int | None = None, encoded: int | None = None
) -> Flops:
    """FLOPs of a token in training at a sequence length.

    Args:
        config: the model.
        length: tokens of an input sequence.
        targets: positions that are predicted in it, or the decoder's length in an encoder-decoder; None for `length`.
        encoded: length of what an encoder reads, where that is not the input (sound beside a text, patches that are
            not hidden); None for `length`. The pass of JEPA's copy of the encoder is left out.
    """
    c, targets = config, targets or length
    check(length >= 1, f"the sequence length must be at least 1, got {length}")
    q, kv = c.num_heads * c.query_dim, c.num_kv_heads * c.query_dim
    project = lambda queries, keys: 4 * c.embed_dim * (q * queries + kv * keys)  # noqa: E731
    # Sums over a sequence; a score and its use are 2 q multiply-adds a pair of query and key.
    if c.architecture == "embeddings":
        return Flops(0, 0, 0, 2 * c.embed_dim)
    if c.architecture in ("vision", "two_towers"):
        return _with_pictures(c, length, encoded)
    if c.architecture == "encoder_decoder":
        encoder = c.encoder_layers or c.num_layers
        inputs = encoded or length
        projections = encoder * project(inputs, inputs)
        projections += c.num_layers * (project(targets, targets) + project(targets, inputs))
        scores = 4 * q * (encoder * inputs**2 + c.num_layers * (targets**2 // 2 + targets * inputs))
        mlp = _mlp(c, encoder) * inputs + _mlp(c, c.num_layers) * targets
    else:
        projections = c.num_layers * project(length, length)
        scores = 4 * q * c.num_layers * length**2 // (2 if c.architecture == "decoder" else 1)
        mlp = _mlp(c, c.num_layers) * length
    head = 2 * c.embed_dim * c.vocab_size * targets
    return Flops(*(part // length for part in (projections, scores, mlp, head)))


def _with_pictures(c: TransformerConfig, length: int, encoded: int | None) -> Flops:
    """Of a picture, and of a text of `length` tokens beside it in two towers, shared out over `length` tokens.

    Where patches are hidden, the encoder reads `encoded` ones, and a narrow Transformer says the others.
    """
    trunk, v, patches = dataclasses.replace(c.image_encoder, vocab_size=1), c.vision, encoded or c.vision.patches
    read = patches + v.length - v.patches  # the class token, too
    parts, head = [(count_flops(trunk, read), read)], 2 * v.patch_values * trunk.embed_dim * patches
    if encoded:
        narrow = dataclasses.replace(c.patch_predictor, vocab_size=1)
        parts.append((count_flops(narrow, v.length), v.length))
        head += 2 * narrow.embed_dim * (trunk.embed_dim * read + v.patch_values * (v.patches - encoded))
    if c.architecture == "two_towers":
        text = "decoder" if c.towers.causal_text else "encoder"
        parts.append((count_flops(dataclasses.replace(c, architecture=text, vocab_size=1), length), length))
    names = ("attention_projections", "attention_scores", "mlp")
    sums = [sum(getattr(flops, name) * tokens for flops, tokens in parts) // length for name in names]
    return Flops(*sums, head // length)


def _mlp(c: TransformerConfig, layers: int) -> int:
    """Of the MLPs, or of the experts that a token goes through, in all layers."""
    matrices = 3 if c.is_gated else 2
    if c.experts is None:
        return layers * 2 * matrices * c.embed_dim * c.mlp_dim
    e = c.experts
    routed = (e.top_k + e.shared) * (e.mlp_dim or c.mlp_dim) * matrices + e.num_experts
    dense = e.dense_layers * matrices * c.mlp_dim
    return 2 * c.embed_dim * ((layers - e.dense_layers) * routed + dense)
