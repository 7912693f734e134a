"""What a linear probe finds in features of sound that were learned without transcripts.

    python benchmarks/masked_sound.py --workdir=W [--seeds=0,1,2] [--input=tones:1000] [--labels=0,50] [--gin=...]

Trains gin_configs/runs/tones_masked.gin for each seed (on one corpus and cache) on sentences. The probe, a logistic
regression, then tells ten words apart that speakers say whom it has not heard: each recording is the mean over its
frames, of the encoder's hidden states (after each layer), or of the log-mel spectrogram (80 bands), or of the hidden
states of an encoder that was not trained. `--labels`: labelled recordings the probe gets; 0 for all. The layer is
chosen on half of the test recordings, and the accuracy is of the other half. Prints one JSON object.
"""

import argparse
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from masked_pictures import trained

from pretrain.core.errors import exit_code
from pretrain.core.rng import device_key, host_rng
from pretrain.core.sound import Waves, decode, padded
from pretrain.core.storage import Path, write_json
from pretrain.curate.spoken import WORDS, speech, tones
from pretrain.evaluate.matching import linear_probe
from pretrain.experiment import Experiment
from pretrain.models.build import build_model
from pretrain.models.log_mel import log_mel
from pretrain.models.vision import mean_of

TRAIN, TEST = 500, 500  # recordings of one word
MELS, ROWS = 80, 50


def spoken(given: str, waves: Waves) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Recordings of one word each, by new speakers, by split: samples int16 [n, T], lengths, words."""
    found = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        samples, words = [], host_rng(1, f"probe {split}").integers(0, len(WORDS), count)
        for number, word in enumerate(words):
            rng = host_rng(1, f"probe {split}", number)
            is_tones = given.startswith("tones")
            sound, _ = tones(np.array([word]), rng) if is_tones else speech(WORDS[word], rng)
            samples.append(decode(sound)[: waves.samples])
        lengths = np.array([len(each) for each in samples], np.int32)
        found[split] = np.stack([padded(each, waves.samples) for each in samples]), lengths, words
    return found


def hidden_states(experiment: Experiment, params: dict, samples: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Means over a recording's frames of the convolutions' frames and of what each layer gives, [n, D] each."""
    model, waves = experiment.model, experiment.objective.waves
    found = []
    for layers in range(experiment.model_config().num_layers + 1):
        # The first layers alone are a model of their own: none has a norm behind its last one.
        config = dataclasses.replace(experiment.model_config(), num_layers=max(layers, 1))
        model = build_model(config, experiment.objective.model_needs)
        blocks = jax.tree.map(lambda x: x[: config.num_layers], params["stack"]["blocks"])  # noqa: B023
        first = params | {"stack": params["stack"] | {"blocks": blocks}}

        @jax.jit
        def encode(params, samples, lengths):
            module = model.module(params)  # noqa: B023
            x_BLC = module.frame_norm(module.frames(samples, lengths))
            valid_BL = jnp.arange(x_BLC.shape[1]) < waves.frames(lengths)[:, None]
            states_BLD = module.encode(x_BLC, valid_BL) if layers else x_BLC  # noqa: B023
            return mean_of(states_BLD, valid_BL)

        parts = [slice(start, start + ROWS) for start in range(0, len(samples), ROWS)]
        found.append(np.concatenate([encode(first, samples[part], lengths[part]) for part in parts]))
    return found


def spectra(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Means over a recording's frames of its log-mel spectrogram, [n, 80]."""
    hear = jax.jit(lambda samples: log_mel(samples, MELS))
    found = []
    for each, length in zip(samples, lengths, strict=True):
        found.append(np.asarray(hear(each[None]))[0, : length // 160].mean(axis=0))
    return np.stack(found)


def best_of(layers: dict[str, list[np.ndarray]], words: dict[str, np.ndarray], labels: int) -> dict[str, float]:
    """Accuracy on half of the test, of the layer that is best on the other half."""
    some, half = slice(labels or None), TEST // 2
    scores = []
    for train, test in zip(layers["train"], layers["test"], strict=True):
        of = [linear_probe(train[some], words["train"][some], test[part], words["test"][part])
              for part in (slice(half), slice(half, None))]  # fmt: skip
        scores.append(of)
    layer = max(range(len(scores)), key=lambda number: scores[number][0])
    return {"accuracy": round(scores[layer][1], 4), "layer": layer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--input", default="tones:1000", help="or espeak:1000, where espeak-ng is installed")
    parser.add_argument("--labels", default="0,50")
    parser.add_argument("--gin", action="append", default=[], help="NAME=VALUE of every run, e.g. TRAIN_STEPS=300")
    arguments = parser.parse_args()
    workdir, result = Path(arguments.workdir), {}
    for seed in map(int, arguments.seeds.split(",")):
        experiment = trained("tones_masked", seed, workdir, [f"INPUT='{arguments.input}'", *arguments.gin])
        recordings = spoken(arguments.input, experiment.objective.waves)
        words = {split: found[2] for split, found in recordings.items()}
        step, params = experiment.checkpoint()
        fresh = jax.jit(experiment.model.init)(device_key(seed, "init"))
        ways = {
            "log-mel": lambda samples, lengths: [spectra(samples, lengths)],
            "learned": lambda samples, lengths: hidden_states(experiment, params, samples, lengths),  # noqa: B023
            "random": lambda samples, lengths: hidden_states(experiment, fresh, samples, lengths),  # noqa: B023
        }
        result[f"seed_{seed}"] = {"steps": step}
        for name, way in ways.items():
            layers = {split: way(samples, lengths) for split, (samples, lengths, _) in recordings.items()}
            result[f"seed_{seed}"][name] = {
                f"{labels or 'all'}_labels": best_of(layers, words, labels)
                for labels in map(int, arguments.labels.split(","))
            }
    write_json(workdir / "masked_sound.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "masked_sound"))
