"""Reads models as the `transformers` library writes them (config.json and safetensors) into ours.

Families: GPT-2, Llama, Mixtral, BERT and T5 (v1.0 and v1.1). Each is a translation of its configuration and a table
from our parameters to the names of theirs. `{layer}` in a name runs over layers, which we stack on a leading axis, and
`{expert}` over experts. Nothing of a file is executed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.core.objective import ModelNeeds
from pretrain.core.storage import Path, local_copy, read_json
from pretrain.core.trees import map_named
from pretrain.models.build import build_model
from pretrain.models.config import Experts, RopeScaling, TransformerConfig
from pretrain.models.functional import Params

Array = np.ndarray
Convert = Callable[[Array, tuple[int, ...]], Array]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
        name: theirs.
        convert: their array and our shape (of one layer, one expert) to ours.
        parts: parameters of ours that their array holds.
    """

    name: str
    convert: Convert
    parts: int = 1


def same(name: str) -> Source:
    """As it is, in our shape."""
    return Source(name, lambda array, shape: array.reshape(shape))


def linear(name: str) -> Source:
    """A torch Linear's weight [out, in]: transposed, heads split where our shape has them."""
    return Source(name, lambda array, shape: array.T.reshape(shape))


def part_of_three(name: str, part: int) -> Source:
    """Query, key or value of GPT-2's joint projection [in, 3 * out] (its weights are not transposed)."""
    return Source(name, lambda array, shape: np.split(array, 3, axis=-1)[part].reshape(shape), parts=3)


DECODER = ModelNeeds(architectures=("decoder",))


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        config: their config.json to our configuration.
        table: our parameters' names, without the stack's prefix where `{layer}` is meant, to their source.
        needs: heads that their checkpoints carry.
    """

    config: Callable[[Mapping[str, Any]], TransformerConfig]
    table: Mapping[str, Source]
    needs: ModelNeeds = DECODER


def norm(ours: str, theirs: str, *, bias: bool = False) -> dict[str, Source]:
    """Scale, and bias, of a norm."""
    found = {f"{ours}/scale": same(f"{theirs}.weight")}
    return found | ({f"{ours}/bias": same(f"{theirs}.bias")} if bias else {})


def dense(ours: str, theirs: str, *, bias: bool = False, kind: Callable[[str], Source] = linear) -> dict[str, Source]:
    """Kernel, and bias, of a projection."""
    found = {f"{ours}/kernel": kind(f"{theirs}.weight")}
    return found | ({f"{ours}/bias": same(f"{theirs}.bias")} if bias else {})


def gpt2_config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Radford et al. 2019."""
    embed = theirs["n_embd"]
    return TransformerConfig(
        vocab_size=theirs["vocab_size"], num_layers=theirs["n_layer"], embed_dim=embed, num_heads=theirs["n_head"],
        mlp_dim=theirs.get("n_inner") or 4 * embed, max_length=theirs["n_positions"], norm="layernorm",
        norm_epsilon=theirs["layer_norm_epsilon"], positions="learned", activation="gelu", use_bias=True,
    )  # fmt: skip


def llama_config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Touvron et al. 2023; Mixtral (Jiang et al. 2024) where there are experts."""
    rope = theirs.get("rope_parameters") or {}
    rope = {**rope, **(theirs.get("rope_scaling") or {})}
    experts = None
    if "num_local_experts" in theirs:
        experts = Experts(num_experts=theirs["num_local_experts"], top_k=theirs["num_experts_per_tok"],
                          balance=theirs["router_aux_loss_coef"])  # fmt: skip
    return TransformerConfig(
        vocab_size=theirs["vocab_size"], num_layers=theirs["num_hidden_layers"], embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"], kv_heads=theirs["num_key_value_heads"],
        head_dim=theirs.get("head_dim"), mlp_dim=theirs["intermediate_size"],
        max_length=theirs["max_position_embeddings"], norm_epsilon=theirs["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or theirs["rope_theta"]), rope_scaling=_rope_scaling(rope),
        sliding_window=theirs.get("sliding_window"), tie_embeddings=theirs["tie_word_embeddings"], experts=experts,
    )  # fmt: skip


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    factor = float(rope["factor"])
    original = rope.get("original_max_position_embeddings", 8192)
    if kind == "llama3":
        return RopeScaling("llama3", factor, original, rope["low_freq_factor"], rope["high_freq_factor"])
    if kind == "yarn":
        return RopeScaling("yarn", factor, original, rope.get("beta_slow", 1.0), rope.get("beta_fast", 32.0))
    check(kind == "linear", f"rope type {kind!r} is not known; known are default, linear, llama3 and yarn")
    return RopeScaling("linear", factor, original)


def bert_config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Devlin et al. 2018."""
    return TransformerConfig(
        architecture="encoder", vocab_size=theirs["vocab_size"], num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"], num_heads=theirs["num_attention_heads"], mlp_dim=theirs["intermediate_size"],
        max_length=theirs["max_position_embeddings"], token_types=theirs["type_vocab_size"], norm="layernorm",
        norm_position="post", norm_epsilon=theirs["layer_norm_eps"], embedding_norm=True, positions="learned",
        activation="gelu_erf", use_bias=True,
    )  # fmt: skip


def t5_config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Raffel et al. 2019; v1.1 where the MLP has a gate."""
    embed, gated = theirs["d_model"], theirs["feed_forward_proj"].startswith("gated")
    scaled = theirs.get("scale_decoder_outputs", not gated)
    return TransformerConfig(
        architecture="encoder_decoder", vocab_size=theirs["vocab_size"], num_layers=theirs["num_decoder_layers"],
        encoder_layers=theirs["num_layers"], embed_dim=embed, num_heads=theirs["num_heads"], head_dim=theirs["d_kv"],
        mlp_dim=theirs["d_ff"], norm_epsilon=theirs["layer_norm_epsilon"], positions="relative",
        relative_buckets=theirs["relative_attention_num_buckets"],
        relative_distance=theirs["relative_attention_max_distance"], activation="geglu" if gated else "relu",
        attention_scale=1.0, tie_embeddings=theirs["tie_word_embeddings"],
        logit_multiplier=embed**-0.5 if scaled else 1.0,
    )  # fmt: skip


GPT2 = {
    "embedding": same("transformer.wte.weight"),
    "position_embedding": same("transformer.wpe.weight"),
    **norm("decoder/blocks/attention_norm", "transformer.h.{layer}.ln_1", bias=True),
    **norm("decoder/blocks/mlp_norm", "transformer.h.{layer}.ln_2", bias=True),
    **{
        f"decoder/blocks/attention/{ours}/{leaf}": part_of_three(f"transformer.h.{{layer}}.attn.c_attn.{theirs}", part)
        for part, ours in enumerate(("query", "key", "value"))
        for leaf, theirs in (("kernel", "weight"), ("bias", "bias"))
    },
    **dense("decoder/blocks/attention/out", "transformer.h.{layer}.attn.c_proj", bias=True, kind=same),
    **dense("decoder/blocks/mlp/up", "transformer.h.{layer}.mlp.c_fc", bias=True, kind=same),
    **dense("decoder/blocks/mlp/down", "transformer.h.{layer}.mlp.c_proj", bias=True, kind=same),
    **norm("decoder/final_norm", "transformer.ln_f", bias=True),
}
LLAMA = {
    "embedding": same("model.embed_tokens.weight"),
    "unembedding": linear("lm_head.weight"),
    **norm("decoder/blocks/attention_norm", "model.layers.{layer}.input_layernorm"),
    **norm("decoder/blocks/mlp_norm", "model.layers.{layer}.post_attention_layernorm"),
    **dense("decoder/blocks/attention/query", "model.layers.{layer}.self_attn.q_proj"),
    **dense("decoder/blocks/attention/key", "model.layers.{layer}.self_attn.k_proj"),
    **dense("decoder/blocks/attention/value", "model.layers.{layer}.self_attn.v_proj"),
    **dense("decoder/blocks/attention/out", "model.layers.{layer}.self_attn.o_proj"),
    **dense("decoder/blocks/mlp/up", "model.layers.{layer}.mlp.up_proj"),
    **dense("decoder/blocks/mlp/gate", "model.layers.{layer}.mlp.gate_proj"),
    **dense("decoder/blocks/mlp/down", "model.layers.{layer}.mlp.down_proj"),
    **norm("decoder/final_norm", "model.norm"),
}
MOE = "model.layers.{layer}.block_sparse_moe"
MIXTRAL = {
    **{name: source for name, source in LLAMA.items() if "/mlp/" not in name},
    "decoder/blocks/mlp/router": linear(f"{MOE}.gate.weight"),
    "decoder/blocks/mlp/gate": linear(f"{MOE}.experts.{{expert}}.w1.weight"),
    "decoder/blocks/mlp/down": linear(f"{MOE}.experts.{{expert}}.w2.weight"),
    "decoder/blocks/mlp/up": linear(f"{MOE}.experts.{{expert}}.w3.weight"),
}
BERT_LAYER = "bert.encoder.layer.{layer}"
BERT = {
    "embedding": same("bert.embeddings.word_embeddings.weight"),
    "position_embedding": same("bert.embeddings.position_embeddings.weight"),
    "type_embedding": same("bert.embeddings.token_type_embeddings.weight"),
    **norm("embedding_norm", "bert.embeddings.LayerNorm", bias=True),
    **dense("encoder/blocks/attention/query", f"{BERT_LAYER}.attention.self.query", bias=True),
    **dense("encoder/blocks/attention/key", f"{BERT_LAYER}.attention.self.key", bias=True),
    **dense("encoder/blocks/attention/value", f"{BERT_LAYER}.attention.self.value", bias=True),
    **dense("encoder/blocks/attention/out", f"{BERT_LAYER}.attention.output.dense", bias=True),
    **norm("encoder/blocks/attention_norm", f"{BERT_LAYER}.attention.output.LayerNorm", bias=True),
    **dense("encoder/blocks/mlp/up", f"{BERT_LAYER}.intermediate.dense", bias=True),
    **dense("encoder/blocks/mlp/down", f"{BERT_LAYER}.output.dense", bias=True),
    **norm("encoder/blocks/mlp_norm", f"{BERT_LAYER}.output.LayerNorm", bias=True),
    **dense("masked_head/dense", "cls.predictions.transform.dense", bias=True),
    **norm("masked_head/norm", "cls.predictions.transform.LayerNorm", bias=True),
    "masked_head/bias": same("cls.predictions.bias"),
    **dense("pair_head/pooler", "bert.pooler.dense", bias=True),
    **dense("pair_head/classes", "cls.seq_relationship", bias=True),
}


def _t5_stack(stack: str, mlp_layer: int) -> dict[str, Source]:
    block = f"{stack}.block.{{layer}}.layer"
    found = {}
    for ours, layer, theirs in (("attention", 0, "SelfAttention"), ("cross", 1, "EncDecAttention")):
        if ours == "cross" and stack == "encoder":
            continue
        found |= norm(f"{stack}/blocks/{ours}_norm", f"{block}.{layer}.layer_norm")
        for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            found |= dense(f"{stack}/blocks/{ours}/{part}", f"{block}.{layer}.{theirs}.{letter}")
    mlp = f"{block}.{mlp_layer}.DenseReluDense"
    return {
        **found,
        **norm(f"{stack}/blocks/mlp_norm", f"{block}.{mlp_layer}.layer_norm"),
        **dense(f"{stack}/blocks/mlp/up", f"{mlp}.wi"),
        **dense(f"{stack}/blocks/mlp/down", f"{mlp}.wo"),
        **norm(f"{stack}/final_norm", f"{stack}.final_layer_norm"),
        f"{stack}/distance/table": same(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    }


T5 = {
    "embedding": same("shared.weight"),
    "unembedding": linear("lm_head.weight"),
    **_t5_stack("encoder", 1),
    **_t5_stack("decoder", 2),
}
T5_GATED = {
    **T5,
    **dense("encoder/blocks/mlp/gate", "encoder.block.{layer}.layer.1.DenseReluDense.wi_0"),
    **dense("encoder/blocks/mlp/up", "encoder.block.{layer}.layer.1.DenseReluDense.wi_1"),
    **dense("decoder/blocks/mlp/gate", "decoder.block.{layer}.layer.2.DenseReluDense.wi_0"),
    **dense("decoder/blocks/mlp/up", "decoder.block.{layer}.layer.2.DenseReluDense.wi_1"),
}
FAMILIES = {
    "gpt2": Family(gpt2_config, GPT2),
    "llama": Family(llama_config, LLAMA),
    "mistral": Family(llama_config, LLAMA),
    "mixtral": Family(llama_config, MIXTRAL),
    "bert": Family(bert_config, BERT, ModelNeeds(architectures=("encoder",), heads=("masked", "pair"))),
    "t5": Family(t5_config, T5, ModelNeeds(architectures=("encoder_decoder",))),
}


def load(folder: str) -> tuple[TransformerConfig, ModelNeeds, Params]:
    """A model that `transformers` saved: our configuration, the heads it has, and parameters (numpy, float32).

    Raises:
        UserError: not such a folder, an unknown family, or weights that do not fit the configuration.
    """
    path = Path(folder) / "config.json"
    check(path.exists(), f"{folder} holds no config.json: give a folder that transformers' save_pretrained wrote")
    theirs = read_json(path)
    kind = theirs.get("model_type")
    check(kind in FAMILIES, f"{path}: models of type {kind!r} cannot be read; known are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    config = family.config(theirs)
    table = T5_GATED if kind == "t5" and config.is_gated else family.table
    tensors = _read_tensors(Path(folder))
    model = build_model(config, family.needs)
    read = functools.partial(_parameter, table=table, tensors=tensors, config=config)
    return config, family.needs, map_named(read, model.shapes)


def _parameter(name: str, ours: Any, *, table, tensors: Mapping[str, Array], config: TransformerConfig) -> Array:
    if name not in table:
        raise UserError(f"the model has a parameter {name} that this family's checkpoints do not hold")
    source, shape = table[name], ours.shape

    def read(name: str, shape: tuple[int, ...]) -> Array:
        if name not in tensors:
            raise UserError(f"the checkpoint has no tensor {name}")
        array = np.asarray(tensors[name], np.float32)
        fits = array.size == np.prod(shape)
        check(fits, f"tensor {name} has shape {list(array.shape)}, which does not fit {list(shape)}")
        return array

    def convert(name: str, shape: tuple[int, ...]) -> Array:
        return source.convert(read(name, (source.parts, *shape)), shape)

    if "{layer}" not in source.name:
        return convert(source.name, shape)
    names = [source.name.replace("{layer}", str(layer)) for layer in range(shape[0])]
    if "{expert}" not in source.name:
        return np.stack([convert(name, shape[1:]) for name in names])
    experts = range(config.experts.num_experts)
    return np.stack([np.stack([convert(n.replace("{expert}", str(e)), shape[2:]) for e in experts]) for n in names])


def _read_tensors(folder: Path) -> dict[str, Array]:
    """All tensors of a folder's safetensors files, which hold data and nothing else."""
    from safetensors.numpy import load_file

    files = sorted(folder.glob("*.safetensors"))
    check(bool(files), f"{folder} holds no .safetensors file; other formats can run code and are not read")
    tensors: dict[str, Array] = {}
    for file in files:
        tensors |= load_file(local_copy(file))
    return tensors
