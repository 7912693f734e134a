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


def attention(q_BLHQ, k_BSKQ, v_BSKQ, mask_BLS) -> np.ndarray:
    """One head and one query at a time."""
    y = np.zeros_like(q_BLHQ)
    group = q_BLHQ.shape[2] // k_BSKQ.shape[2]
    for b, i, h in np.ndindex(q_BLHQ.shape[:3]):
        keys = np.flatnonzero(mask_BLS[b, i])
        scores = k_BSKQ[b, keys, h // group] @ q_BLHQ[b, i, h] / math.sqrt(q_BLHQ.shape[-1])
        y[b, i, h] = softmax(scores) @ v_BSKQ[b, keys, h // group]
    return y


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": gelu,
    "gelu": gelu,
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def project(x: np.ndarray, weights: dict, inputs: int = 1) -> np.ndarray:
    """A linear map over the last `inputs` axes."""
    return np.tensordot(x, weights["kernel"], inputs) + weights.get("bias", 0)


def block(x, weights: dict, positions_BL, mask_BLS, c: TransformerConfig) -> np.ndarray:
    """One layer."""
    h, w = norm(x, weights["attention_norm"], c.norm, c.norm_epsilon), weights["attention"]
    q, k, v = (project(h, w[name]) for name in ("query", "key", "value"))
    if c.qk_norm:
        q, k = (norm(z, w[f"{name}_norm"], "rmsnorm", c.norm_epsilon) for z, name in ((q, "query"), (k, "key")))
    if c.positions == "rotary":
        q, k = (rotate(z, positions_BL, c.rope_theta) for z in (q, k))
    x = x + project(attention(q, k, v, mask_BLS), w["out"], 2)
    h, w = norm(x, weights["mlp_norm"], c.norm, c.norm_epsilon), weights["mlp"]
    hidden = project(h, w["up"])
    activate = ACTIVATIONS[c.activation]
    hidden = activate(project(h, w["gate"])) * hidden if "gate" in w else activate(hidden)
    return x + project(hidden, w["down"])


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
    x = params["embedding"][tokens_BL]
    if c.positions == "learned":
        x = x + params["position_embedding"][positions_BL]
    for layer in range(c.num_layers):
        x = block(x, _layer(params["decoder"]["blocks"], layer), positions_BL, mask_BLS, c)
    x = norm(x, params["decoder"]["final_norm"], c.norm, c.norm_epsilon)
    y = x @ (params["embedding"].T if c.tie_embeddings else params["unembedding"])
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
