"""Skip-gram here against gensim's, on the same words with the same settings: WordSim-353 and words a second.

    PEER/bin/pip install gensim           # an environment of its own
    python benchmarks/word_vectors.py CORPUS PEER/bin/python [--documents=60000] [--seeds=5]

CORPUS: JSONL with `text`. Both train 5 epochs of 100 dimensions, window 5, 5 noise words, min_count 5, sample 1e-3, on
2 threads, in turns, one seed after another; gensim reads its file of words with its fastest reader (`corpus_file`).
Seconds are those of training alone: vocabularies are counted and programs compiled before. Both sets of vectors are
scored by this project. Prints a line of JSON a seed, then the means; ends with exit code 1 where the mean Spearman is
lower than gensim's by more than .03. WordSim-353 is read where gensim ships it.
"""

import argparse
import concurrent.futures
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.data.word_tokenizer import Words, count_words
from pretrain.evaluate.word_vectors import WordVectors, load_word_vectors
from pretrain.evaluation import word_vectors
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.objectives.skip_gram import SkipGram
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.state import init_state
from pretrain.train.step import StepBuilder

EPOCHS, WIDTH, ROWS, LENGTH = 5, 100, 16, 4096
PEER = """
import sys, time
from gensim.models import Word2Vec
text, seed, out, epochs, width = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
model = Word2Vec(sg=1, window=5, negative=5, min_count=5, vector_size=width, sample=1e-3, workers=2, seed=seed)
model.build_vocab(corpus_file=text)
start = time.perf_counter()
model.train(corpus_file=text, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=epochs)
print(model.corpus_total_words * epochs / (time.perf_counter() - start))
model.wv.save_word2vec_format(out, binary=True)
"""
JUDGED = "from gensim.test.utils import datapath; print(datapath('wordsim353.tsv'))"


class Ours:
    """A compiled skip-gram on a fixed text."""

    def __init__(self, documents: list[str]):
        self.words = Words(count_words(documents))
        encoded = self.words.encode(documents)
        tokens, lengths = np.concatenate(encoded), [len(each) for each in encoded]
        vocabulary = Vocabulary(self.words.vocab_size, counts=self.words.counts)
        self.objective = SkipGram().bind(vocabulary)
        columns = self.objective.packed_length(LENGTH)
        rows = len(tokens) // columns // ROWS * ROWS
        shape, segments = (rows, columns), np.repeat(np.arange(1, len(encoded) + 1, dtype=np.int32), lengths)
        self.tokens, self.segments = (each[: rows * columns].reshape(shape) for each in (tokens, segments))
        config = TransformerConfig(architecture="embeddings", vocab_size=vocabulary.size, embed_dim=WIDTH)
        self.model, self.steps = build_model(config), rows // ROWS * EPOCHS
        schedule = Schedule(kind="wsd", peak=0.05, warmup_steps=0, decay_fraction=1.0, final_ratio=0.01)
        optimizer = Optimizer(b2=0.999, weight_decay=0.0, clip_norm=None)
        self.optimizer, rate = build_optimizer(optimizer, schedule, self.steps, self.model.logical_axes())
        builder = StepBuilder(self.model, self.objective, self.optimizer, rate)
        self.step = jax.jit(builder.train, donate_argnums=0)
        self.step(self.state(0), next(self.batches(0)))

    def state(self, seed: int):
        return init_state(self.model, self.optimizer, seed)

    def batches(self, seed: int):
        """Batches, each made while the one before is trained on, as the loader makes them."""
        rng, made = host_rng(seed, "benchmark"), None
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            for _ in range(EPOCHS):
                for rows in rng.permutation(len(self.tokens)).reshape(-1, ROWS):
                    packed = {"tokens": self.tokens[rows], "segment_ids": self.segments[rows]}
                    last, made = (
                        made,
                        thread.submit(self.objective.finish, packed, np.random.default_rng(rng.integers(1 << 62))),
                    )
                    if last is not None:
                        yield last.result()
            yield made.result()

    def train(self, seed: int) -> tuple[WordVectors, float]:
        """Vectors, and words a second."""
        state = jax.block_until_ready(self.state(seed))
        start = time.perf_counter()
        for batch in self.batches(seed):
            state, _ = self.step(state, batch)
        jax.block_until_ready(state)
        speed = self.tokens.size * EPOCHS / (time.perf_counter() - start)
        return word_vectors(self.words, state.params), speed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("peer", help="Python with gensim")
    parser.add_argument("--documents", type=int, default=60000)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    documents = [json.loads(line)["text"] for line in itertools.islice(arguments.corpus.open(), arguments.documents)]
    ours, rows = Ours(documents), []
    judged = subprocess.run([arguments.peer, "-c", JUDGED], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder, "words.txt"), Path(folder, "gensim.bin")
        words = (ours.words._pattern.findall(each.lower()) for each in documents)
        text.write_text("".join(" ".join(each) + "\n" for each in words))
        for seed in range(arguments.seeds):
            vectors, speed = ours.train(seed)
            command = [arguments.peer, "-c", PEER, text, str(seed + 1), out, str(EPOCHS), str(WIDTH)]
            theirs = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            scores = [each.correlation(judged) for each in (vectors, load_word_vectors(out))]
            found = {"spearman": scores[0]["spearman"], "spearman_gensim": scores[1]["spearman"],
                     "words_per_second": speed, "words_per_second_gensim": theirs, "ratio": speed / theirs}  # fmt: skip
            rows.append(found)
            print(json.dumps({"seed": seed, "pairs": [s["pairs"] for s in scores], **found}), flush=True)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    words = {"words": ours.tokens.size, "vocabulary": ours.words.base_size, "steps": ours.steps}
    print(json.dumps({"mean": means, **words, "neighbours": vectors.most_similar(["king"], count=5)}))
    return int(means["spearman"] < means["spearman_gensim"] - 0.03)


if __name__ == "__main__":
    sys.exit(exit_code(main, "word_vectors"))
