"""The same Transformer written again in plain float64 numpy: the reference for values and, by differences, gradients.

Nothing is shared with the model but the names of its parameters. Axes as in `pretrain.core.batch`.
"""

import math

import numpy as np

from pretrain.models.config import TransformerConfig


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x: np.ndarray, weights: dict, kind: str, epsilon: float) -> np.ndarray:
    """RMSNorm or LayerNorm."""
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights["scale"]
    return y + weights.get("bias", 0)


def rotate(x_BLHQ: np.ndarray, positions_BL: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions as a product of complex numbers."""
    half = x_BLHQ.shape[-1] // 2
    angle = positions_BL[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = (x_BLHQ[..., :half] + 1j * x_BLHQ[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def attention(q_BLHQ, k_BSKQ, v_BSKQ, mask_BLS, c: TransformerConfig | None = None, sinks=None, bias=None):
    """One head and one query at a time; `bias` is a function of head and distance key - query."""
    y = np.zeros_like(q_BLHQ)
    group = q_BLHQ.shape[2] // k_BSKQ.shape[2]
    scale = q_BLHQ.shape[-1] ** -0.5 if c is None or c.attention_scale is None else c.attention_scale
    for b, i, h in np.ndindex(q_BLHQ.shape[:3]):
        keys = np.flatnonzero(mask_BLS[b, i])
        scores = k_BSKQ[b, keys, h // group] @ q_BLHQ[b, i, h] * scale
        if c is not None and c.attention_softcap:
            scores = c.attention_softcap * np.tanh(scores / c.attention_softcap)
        scores = scores + np.array([bias(h, key - i) for key in keys]) if bias else scores
        scores = scores if sinks is None else np.append(scores, sinks[h])
        y[b, i, h] = softmax(scores)[: len(keys)] @ v_BSKQ[b, keys, h // group]
    return y


def bucket(distance: int, c: TransformerConfig, *, causal: bool) -> int:
    """T5's bucket of a distance, one number at a time."""
    buckets, start = c.relative_buckets, 0
    if causal:
        size = max(-distance, 0)
    else:
        buckets, size = buckets // 2, abs(distance)
        start = buckets if distance > 0 else 0
    exact = buckets // 2
    if size < exact:
        return start + size
    grown = exact + int(math.log(size / exact) / math.log(c.relative_distance / exact) * (buckets - exact))
    return start + min(grown, buckets - 1)


def distance_bias(weights: dict, c: TransformerConfig, *, causal: bool):
    """What a head adds to its scores at a distance; None for kinds of positions that add nothing."""
    if c.positions == "relative":
        table = weights["distance"]["table"]
        return lambda head, distance: table[bucket(distance, c, causal=causal), head]
    if c.positions == "alibi":  # only for powers of two, where the slopes are one series
        return lambda head, distance: -(2.0 ** (-8 * (head + 1) / c.num_heads)) * abs(distance)
    return None


def experts(x_BLD: np.ndarray, weights: dict, c: TransformerConfig) -> np.ndarray:
    """A mixture of experts, one token and one expert at a time; nothing is dropped."""
    e, y = c.experts, np.zeros_like(x_BLD)
    activate = ACTIVATIONS[c.activation]
    for place in np.ndindex(x_BLD.shape[:2]):
        x = x_BLD[place]
        routed = x @ weights["router"]
        scores = softmax(routed) if e.scores == "softmax" else 1 / (1 + np.exp(-routed))
        chosen = np.argsort(-(scores + weights.get("bias", 0)))[: e.top_k]
        total = scores[chosen].sum() if e.normalize else 1.0
        for expert in chosen:
            up, down = x @ weights["up"][expert], weights["down"][expert]
            hidden = activate(x @ weights["gate"][expert]) * up if "gate" in weights else activate(up)
            y[place] += scores[expert] / total * e.scale * (hidden @ down)
    return y + mlp(x_BLD, weights["shared"], c) if "shared" in weights else y


def mlp(x: np.ndarray, weights: dict, c: TransformerConfig) -> np.ndarray:
    """Two matrices, or three with a gate."""
    activate, hidden = ACTIVATIONS[c.activation], project(x, weights["up"])
    hidden = activate(project(x, weights["gate"])) * hidden if "gate" in weights else activate(hidden)
    return project(hidden, weights["down"])


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": gelu,
    "gelu": gelu,
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def project(x: np.ndarray, weights: dict, inputs: int = 1) -> np.ndarray:
    """A linear map over the last `inputs` axes."""
    return np.tensordot(x, weights["kernel"], inputs) + weights.get("bias", 0)


def add(x, branch, weights: dict, prefix: str, c: TransformerConfig) -> np.ndarray:
    """The residual sum with its norms."""
    normed = lambda y, name: norm(y, weights[name], c.norm, c.norm_epsilon)  # noqa: E731
    if c.norm_position == "post":
        return normed(x + branch(x), f"{prefix}_norm")
    y = branch(normed(x, f"{prefix}_norm"))
    return x + (normed(y, f"{prefix}_out_norm") if c.norm_position == "sandwich" else y)


def block(x, weights: dict, positions_BL, mask_BLS, c: TransformerConfig, bias=None) -> np.ndarray:
    """One layer."""

    def attend(h):
        w = weights["attention"]
        q, k, v = (project(h, w[name]) for name in ("query", "key", "value"))
        if c.qk_norm:
            q, k = (norm(z, w[f"{name}_norm"], "rmsnorm", c.norm_epsilon) for z, name in ((q, "query"), (k, "key")))
        if c.positions == "rotary":
            q, k = (rotate(z, positions_BL, c.rope_theta) for z in (q, k))
        return project(attention(q, k, v, mask_BLS, c, w.get("sinks"), bias), w["out"], 2)

    think = experts if "router" in weights["mlp"] else mlp
    x = add(x, attend, weights, "attention", c)
    return add(x, lambda h: think(h, weights["mlp"], c), weights, "mlp", c)


def as_float64(tree: dict) -> dict:
    """Parameters as float64, without the entries of parts that are switched off."""
    return {
        name: as_float64(value) if isinstance(value, dict) else np.asarray(value, np.float64)
        for name, value in tree.items()
        if value is not None
    }


def logits(params: dict, batch: dict, c: TransformerConfig, *, causal: bool = True) -> np.ndarray:
    """[batch, length, vocab] from float64 parameters; `batch` holds tokens, segment_ids, positions."""
    tokens_BL, segments_BL, positions_BL = (batch[name] for name in ("tokens", "segment_ids", "positions"))
    mask_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    if causal:
        places = np.arange(tokens_BL.shape[1])
        mask_BLS = mask_BLS & (places[:, None] >= places[None, :])
    x = params["embedding"][tokens_BL] * c.embedding_multiplier
    if c.positions == "learned":
        x = x + params["position_embedding"][positions_BL]
    if c.positions == "sinusoidal":
        angle = positions_BL[..., None] * 10_000.0 ** (-np.arange(0, c.embed_dim, 2) / c.embed_dim)
        x = x + np.concatenate([np.sin(angle), np.cos(angle)], -1)
    if c.embedding_norm:
        x = norm(x, params["embedding_norm"], c.norm, c.norm_epsilon)
    stack = params["encoder" if c.architecture == "encoder" else "decoder"]
    two_sided = c.architecture == "encoder"
    bias = distance_bias(stack, c, causal=not two_sided)
    places = np.arange(tokens_BL.shape[1])
    near_LS = np.abs(places[:, None] - places[None]) < (c.sliding_window or 10**9)
    first = c.experts.dense_layers if c.experts else 0
    for layer in range(c.num_layers):
        wide = c.global_every and (layer + 1) % c.global_every == 0
        seen_BLS = mask_BLS if wide else mask_BLS & near_LS
        blocks, index = (stack["dense_blocks"], layer) if layer < first else (stack["blocks"], layer - first)
        x = block(x, _layer(blocks, index), positions_BL, seen_BLS, c, bias)
    if c.norm_position != "post":
        x = norm(x, stack["final_norm"], c.norm, c.norm_epsilon)
    y = x @ (params["embedding"].T if c.tie_embeddings else params["unembedding"]) * c.logit_multiplier
    return y if c.logit_softcap is None else c.logit_softcap * np.tanh(y / c.logit_softcap)


def loss(params: dict, batch: dict, c: TransformerConfig) -> float:
    """Mean negative log-likelihood over the weighted positions."""
    y = logits(params, batch, c)
    y = y - y.max(-1, keepdims=True)
    log_p = y - np.log(np.exp(y).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    return float((nll * batch["loss_weights"]).sum() / batch["loss_weights"].sum())


def _layer(tree: dict, index: int) -> dict:
    return {k: _layer(v, index) if isinstance(v, dict) else v[index] for k, v in tree.items()}
