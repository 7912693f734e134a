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
