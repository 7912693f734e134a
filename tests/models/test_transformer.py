"""The whole Transformer: values and gradients against float64 numpy, causality, packing, and every variant."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from tiny import CONFIG, UNEVEN, model, packed_rows, params

from pretrain.core.errors import UserError
from pretrain.core.trees import named_leaves
from pretrain.models.config import Experts, TransformerConfig
from pretrain.models.mlp import parts_of
from pretrain.objectives.causal import Causal
from pretrain.train.step import StepBuilder

VARIANTS = {
    "default": {},
    "gpt2": {"norm": "layernorm", "positions": "learned", "activation": "gelu", "use_bias": True, "kv_heads": 4},
    "untied": {"tie_embeddings": False, "logit_softcap": 5.0, "head_dim": 16},
    "qk_norm": {"qk_norm": True, "kv_heads": 1, "activation": "geglu"},
    "relu": {"positions": "none", "activation": "relu2", "kv_heads": None},
    "post": {
        "norm": "layernorm",
        "norm_position": "post",
        "embedding_norm": True,
        "positions": "sinusoidal",
        "activation": "gelu_erf",
        "use_bias": True,
    },
    "sandwich": {
        "norm_position": "sandwich",
        "sliding_window": 3,
        "global_every": 2,
        "attention_softcap": 2.0,
        "embedding_multiplier": 3.0,
    },
    "relative": {
        "positions": "relative",
        "attention_scale": 1.0,
        "relative_buckets": 8,
        "relative_distance": 9,
        "logit_multiplier": 0.5,
    },
    "alibi": {"positions": "alibi", "attention_sinks": True, "sliding_window": 5},
    "experts": {"experts": Experts(4, 2, mlp_dim=24, shared=1, dense_layers=1, balance=0.0)},
    "sigmoid experts": {"experts": Experts(6, 3, mlp_dim=16, scores="sigmoid", scale=1.5, balance=0.0, bias_rate=0.01)},
    "plain experts": {"experts": Experts(4, 1, normalize=False, balance=0.0), "activation": "relu"},
}


def batch_of(lengths=UNEVEN, length=16, seed=0) -> dict[str, np.ndarray]:
    return Causal().finish(packed_rows(lengths, length, seed=seed), np.random.default_rng(0))


def builder(config: TransformerConfig, **changes) -> StepBuilder:
    return StepBuilder(model(config), Causal(), optimizer=None, learning_rate=None, **changes)


@functools.cache
def compiled_gradients(config: TransformerConfig, **changes):
    return jax.jit(builder(config, **changes).gradients)


def loss_and_gradients(config: TransformerConfig, values: dict, batch: dict, **changes) -> tuple[float, dict]:
    """Mean loss and its gradients, through the code that trains."""
    grads, (terms, _) = compiled_gradients(config, **changes)(values, batch)
    return float(terms["cross_entropy"].sum / terms["cross_entropy"].weight), grads


@functools.partial(jax.jit, static_argnames=("config", "causal"))
def logits_of(config: TransformerConfig, values: dict, batch: dict, *, causal: bool = True) -> jax.Array:
    module = model(config).module(values)
    return module.head(module(batch["tokens"], batch["segment_ids"], batch["positions"], causal=causal).hidden)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_float64_reference(name):
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    values, batch = params(config), batch_of()
    for causal in (True,) if config.positions == "relative" else (True, False):  # a decoder's buckets are one-sided
        y = logits_of(config, values, batch, causal=causal)
        assert y.dtype == jnp.float32 and y.shape == (4, 16, config.vocab_size)
        expected = reference.logits(reference.as_float64(values), batch, config, causal=causal)
        np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_finite_differences_of_the_float64_reference(name):
    """Along a random direction in each parameter: 1e-6 steps in float64 are good to about 1e-8."""
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    values, batch = params(config), batch_of([[6, 2], [5]], 8)
    value, grads = loss_and_gradients(config, values, batch)
    exact = reference.as_float64(values)
    np.testing.assert_allclose(value, reference.loss(exact, batch, config), rtol=1e-5)
    rng = np.random.default_rng(1)
    for (leaf, array), gradient in zip(named_leaves(exact).items(), named_leaves(grads).values(), strict=True):
        direction = rng.normal(size=array.shape)
        kept, ends = array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            ends.append(reference.loss(exact, batch, config))
        array[...] = kept
        if leaf.endswith("mlp/bias"):
            assert (gradient == 0).all()  # chooses experts and weighs nothing
            continue
        slope, scale = (ends[0] - ends[1]) / 2e-6, np.linalg.norm(gradient)
        assert scale > 0, f"{leaf} gets no gradient"
        np.testing.assert_allclose(
            np.vdot(gradient, direction), slope, rtol=1e-3, atol=1e-3 * scale + 1e-7, err_msg=leaf
        )


def dependence(segments: list[int], *, causal: bool) -> np.ndarray:
    """[outputs, inputs]: largest gradient of an output position's logits by an input position's embedding.

    Every position holds a token of its own and the head is untied, so an embedding row belongs to one position.
    """
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    length = len(segments)
    batch = {
        "tokens": np.arange(length)[None],
        "segment_ids": np.array([segments]),
        "positions": np.arange(length)[None],
    }

    def outputs(embedding):
        y = logits_of(config, {**params(config), "embedding": embedding}, batch, causal=causal)
        return jnp.einsum("lv,v->l", y[0], jnp.asarray(np.random.default_rng(2).normal(size=config.vocab_size)))

    jacobian = jax.jacrev(outputs)(params(config)["embedding"])
    return np.abs(np.asarray(jacobian)).max(-1)[:, :length]


def test_no_position_depends_on_a_later_one():
    by = dependence([1] * 12, causal=True)
    assert (by[np.triu_indices(12, 1)] == 0).all()
    assert (by[np.tril_indices(12)] > 1e-6).all()  # and on all the others it does, or the test could not fail
    assert (dependence([1] * 12, causal=False) > 1e-6).all()


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_leaks_between_packed_documents_or_padding(causal):
    segments = np.array([1, 1, 1, 2, 2, 2, 2, 3, 0, 0])
    by = dependence(segments.tolist(), causal=causal)
    same = segments[:, None] == segments[None, :]
    assert (by[~same] == 0).all()
    seen = same & np.tril(np.ones_like(same)) if causal else same
    assert (by[seen] > 1e-6).all()


def test_packed_documents_are_worth_what_they_are_alone():
    """Values and gradients of documents packed in rows, and each in a row of its own."""
    packed = batch_of([[16], [5, 7], [3], [2, 9, 4]], 16)
    alone = {name: [] for name in packed}
    for row in range(4):
        for segment in range(1, packed["segment_ids"][row].max() + 1):
            inside = packed["segment_ids"][row] == segment
            for name, array in packed.items():
                own = np.zeros(16, array.dtype)
                own[: inside.sum()] = array[row, inside]
                alone[name].append(own)
    alone = {name: np.stack(rows) for name, rows in alone.items()}
    assert len(alone["tokens"]) == 7
    results = [loss_and_gradients(CONFIG, params(), batch) for batch in (packed, alone)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()),
        *(grads for _, grads in results),
    )


SAME_NUMBERS = {
    "unrolled": ({"scan_unroll": -1}, {}),
    "remat minimal": ({"remat": "minimal"}, {}),
    "remat full": ({"remat": "full"}, {}),
    "remat named": ({"remat": "named", "remat_names": ("query", "mlp_out")}, {}),
    "vocabulary in 3 chunks": ({"vocab_chunks": 3}, {}),
    "MLP in 2 chunks": ({"mlp_chunks": 2}, {}),
    "MLP in 4 chunks, made again": ({"mlp_chunks": 4, "remat": "full"}, {}),
    "head in 4 chunks": ({}, {"head_chunks": 4}),
    "all at once": ({"remat": "full", "scan_unroll": -1, "vocab_chunks": 2}, {"head_chunks": 16, "microbatches": 2}),
}


@pytest.mark.parametrize("name", SAME_NUMBERS)
def test_how_it_is_computed_does_not_change_the_numbers(name):
    changes, step_changes = SAME_NUMBERS[name]
    plain = loss_and_gradients(CONFIG, params(), batch_of())
    other = loss_and_gradients(dataclasses.replace(CONFIG, **changes), params(), batch_of(), **step_changes)
    np.testing.assert_allclose(other[0], plain[0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max()), other[1], plain[1]
    )


def test_remat_keeps_less_for_the_backward_pass():
    def kept_bytes(remat: str, chunks: int = 1) -> int:
        step = builder(dataclasses.replace(CONFIG, remat=remat), head_chunks=chunks)
        forward = lambda values: jax.vjp(lambda v: step.loss(v, batch_of(), {"cross_entropy": 1.0})[0], values)[1]  # noqa: E731
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(forward, params())))

    none, minimal, full = (kept_bytes(remat) for remat in ("none", "minimal", "full"))
    assert full < minimal < none
    hidden = 4 * 16 * CONFIG.embed_dim * 4  # bytes
    assert none - full > 2 * CONFIG.num_layers * hidden
    assert full - kept_bytes("full", 4) > 4 * 16 * CONFIG.vocab_size * 4 * 0.5  # chunks never hold the whole logits


def test_scan_and_unroll_are_different_programs():
    def loops(unroll: int) -> int:
        config = dataclasses.replace(CONFIG, scan_unroll=unroll)
        text = jax.jit(lambda v: logits_of(config, v, batch_of())).lower(params()).as_text()
        return text.count("stablehlo.while")

    assert loops(1) == 1 and loops(-1) == 0


def test_a_sequence_of_several_blocks_is_worth_its_documents():
    """Longer than one block of causal attention, with documents across the blocks' edges."""
    lengths = [50, 60, 40]
    packed = batch_of([lengths], 150)
    y, start = logits_of(CONFIG, params(), packed), 0
    for size in lengths:
        span = slice(start, start + size)
        alone = {name: packed[name][:, span] for name in ("tokens", "segment_ids", "positions")}
        np.testing.assert_allclose(y[:, span], logits_of(CONFIG, params(), alone), rtol=1e-3, atol=1e-4)
        start += size


def test_bfloat16_is_near_float32():
    low = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    (value, grads), (exact, exact_grads) = (loss_and_gradients(c, params(), batch_of()) for c in (low, CONFIG))
    np.testing.assert_allclose(value, exact, rtol=2e-2)
    for name, gradient in named_leaves(grads).items():
        other = named_leaves(exact_grads)[name]
        assert gradient.dtype == jnp.float32
        cosine = np.vdot(gradient, other) / np.linalg.norm(gradient) / np.linalg.norm(other)
        assert cosine > 0.99, (name, cosine)
    hidden = jax.eval_shape(
        lambda v, b: model(low).module(v)(b["tokens"], b["segment_ids"], b["positions"]).hidden, params(), batch_of()
    )
    assert hidden.dtype == jnp.bfloat16


def test_grouped_heads_are_repeated_heads():
    """Two key/value heads give what four give when each is written twice."""
    values = params()
    many = dataclasses.replace(CONFIG, kv_heads=4)
    attention = dict(values["decoder"]["blocks"]["attention"])
    for name in ("key", "value"):
        attention[name] = {**attention[name], "kernel": jnp.repeat(attention[name]["kernel"], 2, axis=3 - 1)}
    decoder = {**values["decoder"], "blocks": {**values["decoder"]["blocks"], "attention": attention}}
    repeated = {**values, "decoder": decoder}
    np.testing.assert_allclose(
        logits_of(many, repeated, batch_of()), logits_of(CONFIG, values, batch_of()), rtol=1e-4, atol=1e-4
    )


def test_initial_scales():
    """Matrices 1/sqrt(fan in), output projections divided by sqrt(2 * layers), norms 1."""
    config = dataclasses.replace(CONFIG, num_layers=8, embed_dim=64, mlp_dim=96)
    drawn = named_leaves(jax.jit(model(config).init)(jax.random.key(0)))
    for name, fan_in in (("attention/query", 64), ("attention/key", 64), ("mlp/up", 64), ("mlp/gate", 64)):
        np.testing.assert_allclose(drawn[f"decoder/blocks/{name}/kernel"].std(), fan_in**-0.5, rtol=0.03)
    for name, fan_in in (("attention/out", 64), ("mlp/down", 96)):
        np.testing.assert_allclose(drawn[f"decoder/blocks/{name}/kernel"].std(), fan_in**-0.5 / 4, rtol=0.03)
    np.testing.assert_allclose(drawn["embedding"].std(), 64**-0.5, rtol=0.05)
    assert (drawn["decoder/blocks/mlp_norm/scale"] == 1).all()
    layers = np.asarray(drawn["decoder/blocks/mlp/up/kernel"])
    assert np.abs(np.corrcoef(layers.reshape(8, -1))[np.triu_indices(8, 1)]).max() < 0.1  # layers differ


def test_initial_scales_of_t5():
    """Embeddings of size 1, and queries that make up for scores without a factor: Raffel et al. 2019, their code."""
    config = dataclasses.replace(CONFIG, embed_dim=64, num_heads=4, head_dim=16, attention_scale=1.0,
                                 embedding_init_scale=1.0, tie_embeddings=False)  # fmt: skip
    drawn = named_leaves(jax.jit(model(config).init)(jax.random.key(0)))
    np.testing.assert_allclose(drawn["embedding"].std(), 1, rtol=0.05)
    np.testing.assert_allclose(drawn["unembedding"].std(), 64**-0.5, rtol=0.05)
    np.testing.assert_allclose(drawn["decoder/blocks/attention/query/kernel"].std(), (64 * 16) ** -0.5, rtol=0.03)
    np.testing.assert_allclose(drawn["decoder/blocks/attention/key/kernel"].std(), 64**-0.5, rtol=0.03)


def test_what_is_added_to_embeddings_begins_as_small():
    """Positions of another size would drown the words, or drown in them."""
    config = dataclasses.replace(CONFIG, positions="learned", token_types=2, max_length=160, embedding_init_scale=0.02)
    drawn = named_leaves(jax.jit(model(config).init)(jax.random.key(0)))
    for name in ("embedding", "position_embedding"):
        np.testing.assert_allclose(drawn[name].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(drawn["type_embedding"].std(), 0.02, rtol=0.5)


def test_every_parameter_names_its_axes():
    for changes in VARIANTS.values():
        functional = model(dataclasses.replace(CONFIG, **changes))
        shapes = named_leaves(functional.shapes)
        axes = named_leaves(functional.logical_axes(), is_leaf=lambda node: isinstance(node, tuple))
        assert shapes.keys() == axes.keys()
        for name, shape in shapes.items():
            assert len(axes[name]) == len(shape.shape)
            assert (axes[name][0] == "layers") == ("blocks/" in name)


def test_a_functional_model_is_the_module_it_was_made_from():
    functional, values = model(), params()
    drawn = jax.jit(functional.init)(jax.random.key(1))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, values)
    other = jax.jit(functional.init)(jax.random.key(2))
    assert not np.array_equal(drawn["embedding"], other["embedding"])
    batch = batch_of()
    y = [logits_of(CONFIG, v, batch) for v in (drawn, other, drawn)]
    np.testing.assert_array_equal(y[0], y[2])
    assert np.abs(y[0] - y[1]).max() > 1e-3


WRONG = [
    ({"num_heads": 5, "kv_heads": 5}, "multiple of num_heads"),
    ({"kv_heads": 3}, "multiple of kv_heads"),
    ({"kv_heads": 0}, "kv_heads must be > 0"),
    ({"head_dim": 7}, "even head_dim"),
    ({"num_layers": 0}, "num_layers must be > 0"),
    ({"embed_dim": 32.0}, "whole number"),
    ({"norm": "batchnorm"}, "'rmsnorm', 'layernorm'"),
    ({"activation": "tanh"}, "'swiglu'"),
    ({"scan_unroll": 0}, "scan_unroll"),
    ({"logit_softcap": 0.0}, "logit_softcap must be > 0"),
    ({"param_dtype": "float8"}, "param_dtype"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_vocabulary_fits_the_tokenizer():
    open_config = dataclasses.replace(CONFIG, vocab_size=None)
    assert open_config.with_vocab(260).vocab_size == 384
    assert open_config.with_vocab(256).vocab_size == 256
    assert CONFIG.with_vocab(50) is CONFIG
    with pytest.raises(UserError, match="tokenizer has 65 tokens"):
        CONFIG.with_vocab(65)


@pytest.mark.parametrize(
    ("size", "chunks", "ways", "parts"), [(28672, 4, 256, 4), (11008, 4, 256, 1), (11008, 4, 1, 4), (48, 4, 32, 4)]
)
def test_parts_divide_what_a_device_holds(size, chunks, ways, parts):
    """11,008 values in 256 ways are 43 each, which have no quarters; 48 are not split 32 ways at all."""
    assert parts_of(size, chunks, ways) == parts
