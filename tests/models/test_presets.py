"""Every preset builds by shape, with the parameters of the released checkpoint, or of the paper where none was."""

import json
from pathlib import Path

import pytest

from pretrain.main import main

MODELS = Path(__file__).resolve().parents[2] / "gin_configs" / "models"
# Numbers of the released files; for encoders with all heads they were trained with.
RELEASED = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "gpt2_xl": 1_557_611_200,
    "bert_base": 110_106_428, "bert_large": 336_226_108,
    "roberta_base": 124_697_433, "roberta_large": 355_412_057,
    "t5_small": 60_506_624, "t5_base": 222_903_552, "t5_large": 737_668_096, "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152, "t5_v1_1_base": 247_577_856, "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184, "t5_v1_1_xxl": 11_135_332_352,
    "llama2_7b": 6_738_415_616, "llama2_13b": 13_015_864_320, "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496, "llama3_405b": 405_853_388_800,
    "mixtral_8x7b": 46_702_792_704, "deepseek_moe_16b": 16_375_728_128,
    "vit_b16": 85_798_656, "vit_l14": 303_178_752,
    "clip_b32": 151_277_313, "clip_l14": 427_616_513, "siglip_b16": 203_155_970,
}  # fmt: skip
PUBLISHED = {  # millions, as printed
    "gpt3_125m": 125, "gpt3_350m": 356, "gpt3_760m": 760, "gpt3_1_3b": 1316, "gpt3_2_7b": 2652, "gpt3_6_7b": 6658,
    "gpt3_13b": 12853, "gpt3_175b": 174591, "ul2_20b": 20_000,
}  # fmt: skip
ACTIVE = {"mixtral_8x7b": 12.9e9, "deepseek_moe_16b": 2.8e9}
DIT = {  # of the released code, for 256 pixels: with a table of fixed positions, and a second output for the variance
    "dit_s2": 32_963_360, "dit_b2": 130_512_416, "dit_l2": 458_102_816, "dit_xl2": 675_129_632,
}  # fmt: skip
WHISPER = {  # of the released files, which hold the encoder's 1,500 sinusoids; large is v1's and v2's shape
    "whisper_tiny": 37_760_640, "whisper_base": 72_593_920, "whisper_small": 241_734_912,
    "whisper_medium": 763_857_920, "whisper_large": 1_543_304_960, "whisper_large_v3": 1_543_490_560,
}  # fmt: skip
WAVE = {"wav2vec2_base": 95_044_608}  # of facebook/wav2vec2-base for pretraining
WORLD = {"world_small": 2_264_972, "world_large": 641_664_012}  # our own; by hand from their shapes
MAE = {"mae_l16": 329_541_888}  # of facebook/vit-mae-large for pretraining, whose tables of fixed positions are counted
OTHERS = {"tiny", "word2vec_300", "electra_small", "electra_base", "electra_large"}


def described(name: str, capsys) -> dict:
    assert main(["describe", f"--gin_file={MODELS / name}.gin", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_preset_is_checked():
    assert {path.stem for path in MODELS.glob("*.gin")} == {
        *RELEASED,
        *PUBLISHED,
        *DIT,
        *WORLD,
        *MAE,
        *WHISPER,
        *WAVE,
        *OTHERS,
    }


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_release(name, capsys):
    counts = described(name, capsys)["parameters"]
    assert counts["total"] == RELEASED[name]
    parts = sum(counts[part] for part in ("embedding", "attention", "mlp", "norms", "heads"))
    assert parts == counts["total"]
    assert counts["active"] == pytest.approx(ACTIVE.get(name, counts["total"]), rel=0.011)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_paper(name, capsys):
    near = 0.03 if name == "ul2_20b" else 0.01  # "20B"
    assert described(name, capsys)["parameters"]["total"] / 1e6 == pytest.approx(PUBLISHED[name], rel=near)


@pytest.mark.parametrize("name", DIT)
def test_diffusion_transformers_are_those_of_the_release(name, capsys):
    result = described(name, capsys)
    arrays = result["arrays"]
    width = arrays["classes"]["shape"][1]
    positions, variance = 16 * 16 * width, 16 * (width + 1)
    assert result["parameters"]["total"] + positions + variance == DIT[name]


@pytest.mark.parametrize("name", MAE)
def test_masked_autoencoders_are_those_of_the_release(name, capsys):
    """By hand: 24 layers of 12,596,224, the class token, patches and the last norm; 8 of 3,152,384 in the decoder."""
    result = described(name, capsys)
    encoder = 24 * 12_596_224 + 1024 + (768 * 1024 + 1024) + 2 * 1024
    decoder = (1024 * 512 + 512) + 512 + 8 * 3_152_384 + 2 * 512 + (512 * 768 + 768)
    positions = (14 * 14 + 1) * (1024 + 512)
    assert result["parameters"]["total"] == encoder + decoder == MAE[name] - positions


@pytest.mark.parametrize("name", WHISPER)
def test_speech_models_are_those_of_the_release(name, capsys):
    result = described(name, capsys)
    counts, sinusoids = result["parameters"], 1500 * result["arrays"]["embedding"]["shape"][1]
    assert counts["total"] + sinusoids == WHISPER[name]
    assert sum(counts[part] for part in ("embedding", "attention", "mlp", "norms", "heads")) == counts["total"]


@pytest.mark.parametrize("name", WAVE)
def test_encoders_of_sound_are_those_of_the_release(name, capsys):
    """Beside the temperature of its codes, which is a setting there and moves from step to step here."""
    result = described(name, capsys)
    assert result["arrays"]["codes/temperature"]["size"] == 1
    assert result["parameters"]["total"] == WAVE[name] + 1


@pytest.mark.parametrize("name", WORLD)
def test_world_models(name, capsys):
    assert described(name, capsys)["parameters"]["total"] == WORLD[name]


def test_word_vectors(capsys):
    arrays = described("word2vec_300", capsys)["arrays"]
    assert arrays["words"]["size"] == 3_000_000 * 300  # the release holds the words alone


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [("electra_small", 13_549_057, None), ("electra_base", 109_483_009, 33_740_602),
     ("electra_large", 335_142_913, None)],
)  # fmt: skip
def test_electra_s_two_models(name, discriminator, generator, capsys):
    arrays = described(name, capsys)["arrays"]
    shared = {"embedding", "position_embedding", "type_embedding", "embedding_norm/scale", "embedding_norm/bias"}
    own = {
        part: sum(a["size"] for n, a in arrays.items() if n.startswith(part)) for part in ("discriminator", "generator")
    }
    once = sum(arrays[f"discriminator/{n}"]["size"] for n in shared)
    assert own["discriminator"] == discriminator
    assert not any(f"generator/{n}" in arrays for n in shared)
    if generator:  # published with tables of its own
        assert own["generator"] + once == generator
