"""A user's own module: seqio tasks of text, of token pairs, and of pictures with readings."""

import functools

import numpy as np
import seqio
import tensorflow as tf

from pretrain.data import tasks
from pretrain.data.tokenizers import Bytes

TEXTS = {"train": [f"document {n} " + "word " * n for n in range(40)], "validation": ["held out", ""]}
OTHERS = {"train": [f"other {n}" for n in range(10)]}
BYTES = seqio.Feature(seqio.ByteVocabulary(extra_ids=0), add_eos=True)
OURS = seqio.Feature(tasks.vocabulary(Bytes()), add_eos=True)
NUMBERS = seqio.Feature(seqio.PassThroughVocabulary(size=1), add_eos=False, dtype=tf.float32, rank=2)
PICTURES = seqio.Feature(seqio.PassThroughVocabulary(size=256), add_eos=False, dtype=tf.uint8, rank=4)
TEXT_STEPS = [
    functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
]


def texts(split, shuffle_files=False, seed=None, table=None):
    return tf.data.Dataset.from_tensor_slices({"text": table[split]})


def pairs(split, shuffle_files=False, seed=None):
    rows = {"inputs": [f"question {n}" for n in range(20)], "targets": [f"answer {n}" * (n % 3) for n in range(20)]}
    return tf.data.Dataset.from_tensor_slices(rows)


def robots(split, shuffle_files=False, seed=None):
    def episodes():
        for n in range(1, 9):
            frames = np.arange(n * 2 * 2 * 3).reshape(n, 2, 2, 3) % 256
            yield {"frames": frames.astype(np.uint8), "sensors": np.full((n, 4), n + 0.5, np.float32)}

    frames = tf.TensorSpec((None, 2, 2, 3), tf.uint8)
    return tf.data.Dataset.from_generator(
        episodes, output_signature={"frames": frames, "sensors": tf.TensorSpec((None, 4), tf.float32)}
    )


def add(name, source, steps, features, splits=("train",), counts=None):
    seqio.TaskRegistry.remove(name)
    source = seqio.FunctionDataSource(source, splits=splits, num_input_examples=counts)
    seqio.TaskRegistry.add(name, source, preprocessors=steps, output_features=features)


def mix(name, rates):
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, rates)


add(
    "their_text",
    functools.partial(texts, table=TEXTS),
    TEXT_STEPS,
    {"targets": BYTES},
    tuple(TEXTS),
    {"train": 40, "validation": 2},
)
add("their_other", functools.partial(texts, table=OTHERS), TEXT_STEPS, {"targets": BYTES}, ("train",), {"train": 10})
add("our_text", functools.partial(texts, table=OTHERS), TEXT_STEPS, {"targets": OURS})
mix("their_mixture", [("their_text", 3), ("their_other", 1.5)])
mix("two_vocabularies", [("their_text", 1), ("our_text", 1)])
add(
    "their_pairs",
    pairs,
    [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    {"inputs": BYTES, "targets": BYTES},
)
add("their_robots", robots, [], {"frames": PICTURES, "sensors": NUMBERS})
READINGS = [functools.partial(seqio.preprocessors.rekey, key_map={"targets": "sensors"})]
add("their_numbers", robots, READINGS, {"targets": NUMBERS})
mix("text_and_numbers", [("their_text", 1), ("their_numbers", 1)])


def broken(split, shuffle_files=False, seed=None):
    raise OSError("the disk is gone")


add("their_broken", broken, [], {"targets": BYTES})


def recordings(split, shuffle_files=False, seed=None):
    """Every kind of number that a recording may hold, each with a length of its own."""

    def episodes():
        for n in range(1, 13):
            rng = np.random.default_rng(n)
            yield {
                "number": np.array([n], np.int64),
                "video": rng.integers(0, 256, (n % 4, 2, 3, 3)).astype(np.uint8),
                "depth": rng.integers(0, 65536, (n % 3 + 1, 2, 2)).astype(np.uint16),
                "joints": rng.normal(size=(2 * n, 5)).astype(np.float32),
                "grip": rng.random(n) < 0.5,
                "force": np.array([np.nan, -0.0, np.inf, *rng.normal(size=n)]).astype(np.float16),
                "clock": rng.integers(0, 65536, n).astype(np.uint16),
            }

    first = next(episodes())
    shapes = {name: tf.TensorSpec((None, *array.shape[1:]), array.dtype) for name, array in first.items()}
    return tf.data.Dataset.from_generator(episodes, output_signature=shapes)


def numbers(dtype, rank=1):
    return seqio.Feature(seqio.PassThroughVocabulary(size=1), add_eos=False, dtype=dtype, rank=rank)


RECORDING = {
    "number": numbers(tf.int64),
    "video": numbers(tf.uint8, 4),
    "depth": numbers(tf.uint16, 3),
    "joints": numbers(tf.float32, 2),
    "grip": numbers(tf.bool),
    "force": numbers(tf.float16),
    "clock": numbers(tf.uint16),
}
add("their_recordings", recordings, [], RECORDING)


def token_rows(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({"targets": [[100, 101, 1], [0xC3 + 3, 0xA9 + 3, 1]]})


add("untokenized", token_rows, [], {"targets": BYTES})
