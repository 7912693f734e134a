"""Folders as `transformers` writes them, made here by hand; `make test-parity` compares with the library itself."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from pretrain.core.errors import UserError
from pretrain.core.trees import named_leaves
from pretrain.interop.hugging_face import load
from pretrain.models.build import build_model

GPT2 = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 12, "layer_norm_epsilon": 1e-5}  # fmt: skip # noqa: E501
SHAPES = {
    "transformer.wte.weight": (20, 8), "transformer.wpe.weight": (12, 8),
    "transformer.ln_f.weight": (8,), "transformer.ln_f.bias": (8,),
    **{f"transformer.h.{layer}.{name}": shape for layer in range(2) for name, shape in {
        "ln_1.weight": (8,), "ln_1.bias": (8,), "ln_2.weight": (8,), "ln_2.bias": (8,),
        "attn.c_attn.weight": (8, 24), "attn.c_attn.bias": (24,), "attn.c_proj.weight": (8, 8),
        "attn.c_proj.bias": (8,), "mlp.c_fc.weight": (8, 32), "mlp.c_fc.bias": (32,), "mlp.c_proj.weight": (32, 8),
        "mlp.c_proj.bias": (8,)}.items()},
}  # fmt: skip


def write(folder, config=GPT2, shapes=SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_every_tensor_finds_its_place(tmp_path):
    tensors = write(tmp_path)
    config, needs, params = load(str(tmp_path))
    leaves = named_leaves(params)
    expected = {name: leaf.shape for name, leaf in named_leaves(build_model(config, needs).shapes).items()}
    assert {name: leaf.shape for name, leaf in leaves.items()} == expected
    assert sum(leaf.size for leaf in leaves.values()) == sum(tensor.size for tensor in tensors.values())
    joint = tensors["transformer.h.1.attn.c_attn.weight"]
    np.testing.assert_array_equal(leaves["decoder/blocks/attention/key/kernel"][1], joint[:, 8:16].reshape(8, 2, 4))
    np.testing.assert_array_equal(leaves["decoder/blocks/mlp/down/kernel"][0], tensors["transformer.h.0.mlp.c_proj.weight"])  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ({**GPT2, "model_type": "rwkv"}, SHAPES, "type 'rwkv' cannot be read; known are gpt2"),
        (GPT2, {k: v for k, v in SHAPES.items() if "h.1.ln_2" not in k}, r"no tensor transformer\.h\.1\.ln_2"),
        (GPT2, {**SHAPES, "transformer.wpe.weight": (9, 8)}, r"shape \[9, 8\], which does not fit"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, config, shapes, message):
    write(tmp_path, config, shapes)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"no \.safetensors file; other formats can run code"):
        load(str(tmp_path))
