"""Logits and losses of five families equal those of the `transformers` library in torch, on random weights.

Needs torch and transformers beside this package, so it has an environment and a make target of its own:
`make test-parity`. Rows are whole, padded, and packed: packed documents must be worth what each is alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from pretrain.interop.hugging_face import load
from pretrain.models.build import build_model
from pretrain.objectives.causal import Causal
from pretrain.objectives.losses import cross_entropy

VOCAB, LENGTH = 96, 24
DOCUMENTS = (10, 7, 5)  # of one packed row; two places of padding
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
SIZES = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
ROTARY = {**SIZES, "vocab_size": VOCAB, "num_key_value_heads": 2, "max_position_embeddings": 64}
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_decoder_layers": 3,
      "num_heads": 4, "relative_attention_max_distance": 12, "relative_attention_num_buckets": 8}  # fmt: skip
CAUSAL = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY)),
    "llama3 rope": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY, rope_parameters=LLAMA3)),
    "yarn rope": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY, rope_parameters=YARN)),
    "sliding window": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**ROTARY, sliding_window=6)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**ROTARY, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    ),
}
T5_KINDS = {"v1.0": {}, "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}


def saved(model: torch.nn.Module, folder) -> tuple:
    """Their model with weights that are nowhere trivial, and ours read from its files."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = 0.15 * torch.randn_like(value)
            value.copy_(1 + noise if value.ndim == 1 and name.endswith("weight") else noise)
    model.save_pretrained(folder)
    config, needs, params = load(str(folder))
    return model.eval(), build_model(config, needs), jax.tree.map(jnp.asarray, params)


def tokens_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, shape)


def rows(tokens: np.ndarray, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of documents of these lengths, one after another, in every row."""
    segments = np.zeros(tokens.shape, np.int32)
    positions = np.zeros(tokens.shape, np.int32)
    start = 0
    for number, length in enumerate(lengths, 1):
        segments[:, start : start + length] = number
        positions[:, start : start + length] = np.arange(length)
        start += length
    return segments, positions


def causal_logits(model, params, tokens, lengths) -> np.ndarray:
    segments, positions = rows(tokens, lengths)

    @jax.jit
    def run(params):
        module = model.module(params)
        return module.head(module(jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions)).hidden)

    return np.asarray(run(params))


def theirs(model, tokens, **options):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), **options)


@pytest.mark.parametrize("family", CAUSAL)
def test_causal_logits_and_loss(family, tmp_path):
    torch_model, model, params = saved(CAUSAL[family](), tmp_path)
    tokens = tokens_of((3, LENGTH))
    expected = theirs(torch_model, tokens, labels=torch.tensor(tokens))
    logits = causal_logits(model, params, tokens, (LENGTH,))
    assert np.abs(expected.logits.numpy()).max() > 0.5  # or anything would be near
    np.testing.assert_allclose(logits, expected.logits, **TOLERANCE)
    targets, weights = tokens[:, 1:], np.ones((3, LENGTH - 1), np.float32)
    terms, _ = Causal().loss(jnp.asarray(logits[:, :-1]), {"targets": targets, "loss_weights": weights})
    np.testing.assert_allclose(terms["cross_entropy"].sum / terms["cross_entropy"].weight, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("family", CAUSAL)
def test_causal_padded_and_packed(family, tmp_path):
    torch_model, model, params = saved(CAUSAL[family](), tmp_path)
    tokens = tokens_of((2, LENGTH), 1)
    packed, start = causal_logits(model, params, tokens, DOCUMENTS), 0
    for length in DOCUMENTS:
        span = slice(start, start + length)
        np.testing.assert_allclose(packed[:, span], theirs(torch_model, tokens[:, span]).logits, **TOLERANCE)
        start += length
    mask = torch.tensor(np.arange(LENGTH)[None].repeat(2, 0) < 17).long()
    padded = causal_logits(model, params, tokens, (17,))
    np.testing.assert_allclose(
        padded[:, :17], theirs(torch_model, tokens, attention_mask=mask).logits[:, :17], **TOLERANCE
    )


def test_bert_masked_and_next_sentence(tmp_path):
    sizes = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 64, "attn_implementation": "eager"}
    torch_model, model, params = saved(transformers.BertForPreTraining(transformers.BertConfig(**sizes)), tmp_path)
    tokens, types = tokens_of((2, LENGTH), 2), np.arange(LENGTH)[None].repeat(2, 0) % 2

    @jax.jit
    def run(params, segments, positions):
        module = model.module(params)
        hidden = module(jnp.asarray(tokens), segments, positions, causal=False, types_BL=jnp.asarray(types)).hidden
        return module.masked_logits(hidden), module.pair_head(hidden)

    logits, _ = run(params, *rows(tokens, DOCUMENTS))
    _, pairs = run(params, *rows(tokens, (19,)))
    start = 0
    for length in DOCUMENTS:
        span = slice(start, start + length)
        expected = theirs(torch_model, tokens[:, span], token_type_ids=torch.tensor(types[:, span]))
        np.testing.assert_allclose(logits[:, span], expected.prediction_logits, **TOLERANCE)
        start += length
    mask = torch.tensor(np.arange(LENGTH)[None].repeat(2, 0) < 19).long()
    labels = np.where(np.random.default_rng(3).random(tokens.shape) < 0.2, tokens, -100)
    labels[:, 19:] = -100
    expected = theirs(
        torch_model, tokens, attention_mask=mask, token_type_ids=torch.tensor(types), labels=torch.tensor(labels),
        next_sentence_label=torch.tensor([0, 1]),
    )  # fmt: skip
    np.testing.assert_allclose(pairs[:, 0], expected.seq_relationship_logits, **TOLERANCE)
    whole, _ = run(params, *rows(tokens, (19,)))
    nll, _ = cross_entropy(whole, jnp.asarray(np.maximum(labels, 0)))
    pair_nll, _ = cross_entropy(pairs[:, :1], jnp.asarray([[0], [1]]))
    loss = np.asarray(nll)[labels >= 0].mean() + np.asarray(pair_nll).mean()
    np.testing.assert_allclose(loss, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("kind", T5_KINDS)
def test_t5(kind, tmp_path):
    config = transformers.T5Config(**T5, **T5_KINDS[kind])
    torch_model, model, params = saved(transformers.T5ForConditionalGeneration(config), tmp_path)
    inputs, targets = tokens_of((2, LENGTH), 4), tokens_of((2, 14), 5)

    def run(input_lengths, target_lengths):
        packed_inputs = (jnp.asarray(inputs), *map(jnp.asarray, rows(inputs, input_lengths)))
        packed_targets = (jnp.asarray(targets), *map(jnp.asarray, rows(targets, target_lengths)))

        @jax.jit
        def logits(params):
            module = model.module(params)
            return module.head(module.encode_decode(packed_inputs, packed_targets).hidden)

        return np.asarray(logits(params))

    def expect(inputs, targets, **options):
        return theirs(torch_model, inputs, decoder_input_ids=torch.tensor(targets), **options)

    labels = tokens_of((2, 14), 6)
    expected = expect(inputs, targets, labels=torch.tensor(labels))
    whole = run((LENGTH,), (14,))
    np.testing.assert_allclose(whole, expected.logits, **TOLERANCE)
    nll, _ = cross_entropy(jnp.asarray(whole), jnp.asarray(labels))
    np.testing.assert_allclose(nll.mean(), expected.loss, **TOLERANCE)
    packed, start, target_start = run((10, 7), (6, 8)), 0, 0
    for length, target_length in ((10, 6), (7, 8)):
        span, target_span = slice(start, start + length), slice(target_start, target_start + target_length)
        expected = expect(inputs[:, span], targets[:, target_span])
        np.testing.assert_allclose(packed[:, target_span], expected.logits, **TOLERANCE)
        start, target_start = start + length, target_start + target_length
    mask = torch.tensor(np.arange(LENGTH)[None].repeat(2, 0) < 17).long()
    padded = run((17,), (14,))
    np.testing.assert_allclose(padded, expect(inputs, targets, attention_mask=mask).logits, **TOLERANCE)
