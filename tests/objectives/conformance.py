"""What every objective must hold. A new file in `pretrain/objectives` is found and checked without an edit here.

The model is the tiny one of the first architecture an objective names, with the heads it needs. An objective that needs
other packed features than those of `tiny.packed_rows` gives them in `PACKED`, by (objective, lengths), one of examples
the features of its records in `RECORDS`; settings that say more than the defaults go into `SETTINGS`. Arrays named
`<prefix>weights` say what of `<prefix>targets` and other `<prefix>...` counts; with `loss_weights` go `targets` and
`target_...`.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable

import jax
import numpy as np
from tiny import CONFIG, UNEVEN, VOCAB, model, packed_rows, params

import pretrain.objectives
from pretrain.core.batch import Batch
from pretrain.core.diffusion import PictureShape
from pretrain.core.images import encode
from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.core.sound import SoundShape, Waves
from pretrain.core.sound import encode as encode_sound
from pretrain.core.video import VideoShape
from pretrain.models.config import TransformerConfig
from pretrain.models.functional import FunctionalModel
from pretrain.models.vision_config import Predictor, Towers, Vision
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import Causal
from pretrain.objectives.denoising import SpanCorruption, TextInfilling
from pretrain.objectives.examples import Examples
from pretrain.objectives.films import Films
from pretrain.objectives.hidden_patches import HiddenPatches
from pretrain.objectives.pictures import Pictures
from pretrain.objectives.prefix import PrefixLM
from pretrain.train.step import StepBuilder

LENGTH = 16
PICTURES = Pictures(image_size=8, channels=1, area=(0.5, 1.0), colours=0.2)
SHAPED = Pictures(patches=6, patch_size=4, channels=1)
VISION = Vision(image_size=8, patch_size=4, channels=1, num_layers=1, pooling="attention")
WAVES = Waves(
    seconds=0.18, channels=16, position_width=4, position_groups=2, entries=8, code_dim=8, joint_dim=8,
    convolutions=((10, 5), (4, 4), (4, 4), (2, 2)),
)  # fmt: skip
SETTINGS: dict[str, list[dict]] = {
    "SkipGram": [{"block": 8, "window": 3, "subsample": 0.0}],
    "ContinuousBagOfWords": [{"block": 8, "window": 3, "subsample": 0.0}],
    "Causal": [{"z_loss": 0.01}],  # two terms
    "Masked": [{"rate": 0.6}, {"rate": 0.6, "whole_words": True, "span_p": 0.5}],  # at 15 % rows weigh too little
    "NextSentence": [{"rate": 0.6}],
    "ReplacedTokens": [{"rate": 0.6}],
    "MultiToken": [{"ahead": 2, "z_loss": 0.01}],
    "SpanCorruption": [
        {"density": 0.5, "mean_span": 2.0, "layout": layout} for layout in ("encoder_decoder", "decoder")
    ],
    "MixtureOfDenoisers": [{"denoisers": (("R", 0.3, 2.0), ("S", 0.5, None))}],
    "ImageText": [
        {"text_length": LENGTH, "rows": 1, "pictures": PICTURES},
        {"text_length": LENGTH, "rows": 2, "loss_kind": "sigmoid", "pictures": SHAPED},
    ],
    "SimCLR": [{"temperature": 0.05, "rows": 2, "pictures": PICTURES}],
    "SimCSE": [{"text_length": LENGTH, "rows": 2}],
    "Transcription": [{"sound": SoundShape(seconds=0.16, mels=20), "text_length": LENGTH}],
    "MaskedSound": [
        {"waves": WAVES, "start_rate": 0.2, "span": 2, "distractors": 4, "diversity": 0.01, "penalty": 0.01}
    ],
    "Mixed": [
        {"objectives": (Causal(z_loss=0.01), PrefixLM(), SpanCorruption(layout="decoder", density=0.5))},
        {"objectives": (TextInfilling(), SpanCorruption(density=0.5)), "average": "objectives"},
    ],
}
VIDEO = VideoShape(4, 8, 1, patch=4, lowest=-2.0, highest=2.0)
SETTINGS["NextFrame"] = [
    {"video": dataclasses.replace(VIDEO, state_is_place=True)},
    {"video": dataclasses.replace(VIDEO, levels=(2, 2), instruction=5)},
]


def recorded(objective: Objective, lengths: list[list[int]]) -> Batch:
    """Episodes of a robot, packed: random frames of even patches, states and actions."""
    rng, v = np.random.default_rng(0), objective.video
    segments = packed_rows(lengths, LENGTH)["segment_ids"]
    real = segments > 0
    numbers = lambda size: rng.uniform(-1, 1, (*segments.shape, size)).astype(np.float32) * real[..., None]  # noqa: E731
    patches = rng.choice([40, 200], (*segments.shape, v.height // v.patch, v.width // v.patch, v.channels))
    frames = patches.astype(np.uint8).repeat(v.patch, axis=2).repeat(v.patch, axis=3)
    return {
        "frames": frames * real[..., None, None, None].astype(np.uint8),
        "states": numbers(v.state_dim), "actions": numbers(v.action_dim), "action_targets": numbers(v.action_dim),
        "action_weights": (real & (np.arange(LENGTH) % 3 > 0)).astype(np.float32),
        "instructions": rng.integers(0, 256, (*segments.shape, v.instruction), np.uint8) * real[..., None],
        "frames_segment_ids": segments,
    }  # fmt: skip


HIDDEN = {"pictures": dataclasses.replace(PICTURES, patch_size=2), "ratio": 0.7}
FILMS = Films(frames=4, stride=2, height=8, width=8, channels=1, patch_size=4, tube=2, flip=True)
SETTINGS["MaskedPictures"] = [
    {"pictures": dataclasses.replace(PICTURES, patch_size=4), "ratio": 0.5},
    {"pictures": FILMS, "ratio": 0.5, "normalized": False},
    {"pictures": FILMS, "ratio": 0.5, "at_all_times": False},
]
SETTINGS["HiddenFeatures"] = [HIDDEN]

PICTURE = PictureShape(4, 8, 1, patch=4, classes=3)
SETTINGS["Diffusion"] = [
    {"picture": PICTURE},
    {"picture": dataclasses.replace(PICTURE, frames=4, tube=2, given=2)},
    {"picture": dataclasses.replace(PICTURE, levels=(4, 4, 4, 4))},
]


def pictured(objective: Objective, lengths: list[list[int]]) -> Batch:
    """Rows of a picture or film and its class; none where a row has no lengths, a broken one where it has 3."""
    rng, p, rows = np.random.default_rng(0), objective.picture, []
    for number, row in enumerate(lengths):
        seen = rng.integers(0, 256, (*[p.frames + 2] * (p.frames > 1), p.height, p.width, p.channels)).astype(np.uint8)
        label = np.array([number % p.classes] * (sum(row) != 3), np.int32)
        record = dict(zip(objective.features, (seen, label), strict=True))
        rows.append(objective.prepare(record, rng)["row"] * np.uint8(bool(row)))
    return {"row": np.stack(rows), "segment_ids": np.array([[bool(row)] for row in lengths], np.int32)}


PACKED: dict[str, Callable[[Objective, list[list[int]]], Batch]] = {"Diffusion": pictured, "NextFrame": recorded}
# The least loss a fresh model has; 3, as for a word out of a vocabulary, where nothing stands here. SimCSE is solved
# before training: a sentence is near itself under another dropout.
FIRST_LOSS = {
    "Diffusion": 0.5, "HiddenFeatures": 0.3, "ImageText": 0.5, "MaskedPictures": 0.3, "MaskedSound": 0.5,
    "NextFrame": 0.5, "SimCLR": 0.5, "SimCSE": 0,
}  # fmt: skip


def tone(hertz: float, samples: int) -> np.ndarray:
    """A tone at 16 kHz, float32: recordings differ by what is heard, not by noise alone."""
    return 0.3 * np.sin(2 * np.pi * hertz / 16_000 * np.arange(samples), dtype=np.float32)


# Features of a record, from a generator and the number of its tokens.
RECORDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "tokens": lambda rng, size: np.append(rng.integers(4, VOCAB, size - 1), 2).astype(np.int32),
    "sound": lambda rng, size: np.frombuffer(encode_sound(tone(rng.uniform(200, 4000), 160 * size)), np.uint8),
    "image": lambda rng, size: np.frombuffer(encode(rng.integers(0, 256, (9, 8 + size, 1), np.uint8)), np.uint8),
    "frames": lambda rng, size: rng.integers(0, 256, (7 + size, 8, 8, 1), np.uint8),
}
SIZE = VOCAB + 128
COUNTS = np.array([0] * 4 + [1] * (VOCAB - 4) + [10**6] * 128)  # noise words are hardly ever words of the batch
VOCABULARY = Vocabulary(SIZE, num_sentinels=128, starts_word=np.arange(SIZE) % 3 == 0, counts=COUNTS)


def objective_classes() -> list[type[Objective]]:
    """Every concrete objective in `pretrain.objectives`, by name."""
    found = {}
    for info in pkgutil.walk_packages(pretrain.objectives.__path__, "pretrain.objectives."):
        for name, member in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(member, Objective) and not inspect.isabstract(member):
                found[name] = member
    return [found[name] for name in sorted(found)]


def cases() -> dict[str, Objective]:
    """Objectives by a readable name, each with every setting that is checked."""
    return {
        f"{kind.__name__}({', '.join(f'{k}={_short(v)}' for k, v in settings.items())})": kind(**settings).bind(
            VOCABULARY
        )
        for kind in objective_classes()
        for settings in SETTINGS.get(kind.__name__, [{}])
    }


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, Pictures | Films | SoundShape | Waves) else str(value)


def packed(objective: Objective, lengths: list[list[int]] = UNEVEN) -> Batch:
    """Packed rows of very different weight, as the loader gives them to `finish`."""
    kind = type(objective).__name__
    if kind in PACKED:
        return PACKED[kind](objective, lengths)
    if isinstance(objective, Examples):
        return packed_examples(objective, lengths)
    columns = objective.packed_length(LENGTH)
    sizes = np.arange(columns + 1)
    prepared = np.minimum(objective.prepared_length(sizes), columns + 1) * (sizes > 0)
    fitting = []  # as many documents of each row as it holds, the last one cut
    for row in lengths:
        fitting.append([])
        for size in row:
            longest = int(np.searchsorted(prepared, columns - prepared[fitting[-1]].sum(), "right")) - 1
            fitting[-1] += [min(size, longest)] * (longest > 0)
    rows = packed_rows([prepared[row].tolist() for row in fitting], columns)
    for row, texts in enumerate(fitting):
        for segment, size in enumerate(texts, start=1):
            of = rows["segment_ids"][row] == segment
            record = {"tokens": rows["tokens"][row][of][:size]}
            rows["tokens"][row, of] = objective.prepare(record, host_rng(0, "prepare"))["tokens"]
    return rows


def packed_examples(objective: Examples, lengths: list[list[int]]) -> Batch:
    """Rows of one example each, none where a row has no lengths; nothing can be made of the record with 3 tokens."""
    rows, is_there = [], np.array([[bool(row)] for row in lengths], np.int32)
    for number, row in enumerate(lengths):
        rng, size = host_rng(0, "records", number), sum(row)
        record = {name: RECORDS[name](rng, max(size, 1)) for name in objective.features}
        record = {name: array[:1] for name, array in record.items()} if size == 3 else record
        (packed_row,) = objective.prepare(record, host_rng(0, "prepare", number)).values()
        rows.append(packed_row * np.uint8(bool(row)))
    return {"row": np.stack(rows), "segment_ids": is_there}


def batch(objective: Objective) -> Batch:
    """A finished batch."""
    return objective.finish(packed(objective), host_rng(0, "finish", 0))


def config(objective: Objective) -> TransformerConfig:
    """The tiny model's configuration, in the architecture of an objective."""
    types = 2 if "types" in objective.batch_spec(1, LENGTH) else 0
    architecture = objective.model_needs.architectures[0]
    return dataclasses.replace(
        CONFIG, vocab_size=VOCABULARY.size, architecture=architecture, token_types=types, vision=vision(objective),
        towers=Towers(joint_dim=24, image_projection=True, projection_bias=True, temperature=10.0),
    )  # fmt: skip


def vision(objective: Objective) -> Vision:
    """The tiny encoder of the pictures or films of an objective."""
    if not isinstance(objective, HiddenPatches):
        return VISION
    p, narrow = objective.pictures, Predictor(num_layers=1, embed_dim=32, num_heads=2, mlp_dim=64)
    other = {"pooling": "class"}
    if isinstance(p, Films):
        other = {"frames": p.frames, "tube": p.tube, "positions": "sincos", "pooling": "mean"}
    return dataclasses.replace(VISION, patch_size=p.patch_size, predictor=narrow, **other)


def model_of(objective: Objective) -> FunctionalModel:
    """The tiny model that serves an objective."""
    return model(config(objective), objective.model_needs)


def params_of(objective: Objective) -> dict:
    """Its parameters, no norm or bias at its initial value."""
    return params(config(objective), objective.model_needs)


def blank(arrays: Batch) -> dict[str, np.ndarray]:
    """By array of a batch, where anything may stand: bool, of the array's first two axes.

    That is where there is no document, and, in targets and what belongs to weights of their own, where the weight is 0;
    in batches of examples, rows of weight 0.
    Segment ids, which say where documents are, and arrays of one number a row are left out.
    """
    weights = {name.removesuffix("weights"): array for name, array in arrays.items() if name.endswith("weights")}
    found = {}
    for name, array in arrays.items():
        if name.endswith(("segment_ids", "weights")) or array.ndim < 2:
            continue
        places, first = np.zeros(array.shape[:2], bool), name.split("_")[0]
        names = (f"{name}_segment_ids", f"{first}_segment_ids", "segment_ids")
        segments = next((arrays[each] for each in names if each in arrays), None)
        if segments is not None and segments.shape == places.shape:
            places |= segments == 0
        belongs = weights.get(f"{first}_", weights.get("loss_") if "target" in name else None)
        if belongs is not None and belongs.shape == places.shape:
            places |= belongs == 0
        if arrays.get("loss_weights", array).ndim == 1:
            places |= (arrays["loss_weights"] == 0)[:, None]
        found[name] = places
    return found


def builder(objective: Objective, **changes) -> StepBuilder:
    """The training step of an objective on the tiny model."""
    return StepBuilder(model_of(objective), objective, optimizer=None, learning_rate=None, **changes)


COMPILED: dict[tuple, tuple[Objective, Callable]] = {}  # by identity: objectives hold arrays and have no hash


def loss_and_gradients(objective: Objective, params: dict, arrays: Batch, **changes) -> tuple[dict, dict]:
    """Total sums and weights of the terms, and gradients of the trained loss."""
    key = (id(objective), *sorted(changes.items()))
    if key not in COMPILED:
        COMPILED[key] = objective, jax.jit(builder(objective, **changes).gradients)
    grads, (terms, _) = COMPILED[key][1](params, arrays)
    return {name: (float(t.sum), float(t.weight), t.coefficient) for name, t in terms.items()}, grads


def assert_same(
    found: tuple[dict, dict], expected: tuple[dict, dict], rtol: float = 2e-5, slopes: float | None = None
) -> None:
    """Equal terms and gradients, to rounding of float32 sums in another order; `slopes`: gradients', if not `rtol`."""
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, rtol=rtol, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=(slopes or rtol) * np.abs(b).max() + 1e-9),
        found[1],
        expected[1],
    )
