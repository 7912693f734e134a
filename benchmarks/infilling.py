"""What both sides of a gap are worth: span corruption and fill in the middle against a causal model.

    python benchmarks/infilling.py DATA OUTPUT [--steps=600] [--length=64] [--seed=0] [--bytes] [--gin=BINDING ...]

DATA is the folder of a run with a corpus, whose cache is made with 103 sentinels when it is not there. Three run files
(quickstart, t5_quickstart, fim_quickstart) train models of one width, each for so many steps of about `TOKENS` tokens
of text, in pieces of --length; what an objective adds to a piece comes on top of that, so all see as much text. All
are asked for the same tokens of held-out documents, in up to `MOST` pieces each, teacher-forced:

**spans** that T5's noise takes out: T5 sees the text around them, the causal model all text before them;
**middles** between two random cuts: given prefix and suffix, in both orders of FIM, or the prefix alone.

Prints nats per token with a 95 % interval over pieces, of all tokens of a piece as well, and how far arms that
score the same tokens are apart, piece by piece. Arms may be trained one by one: each leaves its scores in its folder.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.data.documents import stored_tokens
from pretrain.experiment import Experiment
from pretrain.objectives.causal import Causal
from pretrain.objectives.denoising import SpanCorruption
from pretrain.objectives.fill_in_the_middle import MIDDLE, ROOM, SUFFIX, FillInTheMiddle
from pretrain.objectives.losses import cross_entropy
from pretrain.objectives.pieces import take_apart
from pretrain.objectives.spans import allot, spans_of

TOKENS, MOST = 2048, 64  # tokens of a step; pieces of a document
# As T5, whose embeddings are of size 1: with small ones the decoder takes far longer to find which sentinel is which.
T5 = ("TransformerConfig.embedding_multiplier=11.3", "Schedule.warmup_steps=100")
ARMS = {"causal": ("quickstart",), "fim": ("fim_quickstart",), "t5": ("t5_quickstart", *T5)}
SMALL = (
    "TransformerConfig.num_layers=2", "TransformerConfig.embed_dim=128", "TransformerConfig.num_heads=4",
    "TransformerConfig.mlp_dim=344", "VOCAB_SIZE=512", "EVAL_EVERY=0",
    "TokenizerConfig.extra_ids=103",
)  # fmt: skip


def trained(arm: str, options: argparse.Namespace) -> Experiment:
    """The experiment of an arm, trained."""
    bindings = [*SMALL, f"Experiment.data='{options.data}'", f"TRAIN_STEPS={options.steps}", f"SEED={options.seed}"]
    bindings += [f"BATCH_SIZE={TOKENS // options.length}"]
    bindings += [f"SEQUENCE_LENGTH={options.length + (ROOM if arm == 'fim' else 0)}"]
    bindings += [f"CHECKPOINT_EVERY={options.steps}", "CacheConfig.seed=0"]
    bindings += ["TokenizerConfig.kind='bytes'"] if options.bytes else []
    file, *more = ARMS[arm]
    for binding in options.gin:
        of_arm, _, rest = binding.partition(":")
        more += [rest] if of_arm == arm else [] if of_arm in ARMS else [binding]
    workdir = f"{options.output}/{arm}-{options.seed}"
    experiment = Experiment.from_gin([f"gin_configs/runs/{file}.gin"], [*bindings, *more], workdir=workdir)
    experiment.cache()
    if arm == "t5":
        length = SpanCorruption().packed_length(experiment.training.sequence_length)
        if length != options.length:
            raise SystemExit(f"T5's rows hold {length} tokens: --length={length}, or --gin=t5:SEQUENCE_LENGTH=N")
    experiment.train()
    return experiment


def is_text(vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
    """Which ids stand in texts: no sentinels, padding or ends."""
    return (ids < vocabulary.text_size) & ~np.isin(ids, [vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id])


def nats(experiment: Experiment, objective, batch: dict) -> np.ndarray:
    """Negative log-likelihood of every target of a batch that is text, given that the text goes on there.

    A middle or a span can end at each of its tokens, and a model of them says how probable that is; one that reads from
    left to right is not asked. So ends and sentinels are taken out of every model's answers.
    """
    _, params = experiment.checkpoint()
    vocabulary = experiment.task.vocabulary

    @jax.jit
    def of(params, batch):
        module = experiment.model.module(params)
        logits = objective.head(module, objective.forward(module, batch).hidden, batch)
        answers = jnp.where(is_text(vocabulary, np.arange(logits.shape[-1])), logits, -jnp.inf)
        return cross_entropy(answers, batch["targets"])[0]

    size = 32
    parts = [
        {name: array[start : start + size] for name, array in batch.items()}
        for start in range(0, len(batch["targets"]), size)
    ]
    return np.concatenate([of(params, part) for part in parts])


def packed_rows(texts: np.ndarray, before: np.ndarray, room: int = 0) -> dict[str, np.ndarray]:
    """Each text in a row of its own, with room after it; `before`, int [R], are the tokens in front of them."""
    rows, length = len(texts), texts.shape[1] + room
    first = np.zeros((rows, length), np.int32)
    first[:, 0] = before
    return {
        "tokens": np.pad(texts, ((0, 0), (0, room))), "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)), "first_inputs": first,
    }  # fmt: skip


class Scores:
    """Sums of nats and counts of tokens of each piece, by what was asked; kept in the folder of an arm."""

    def __init__(self, folder: Path):
        self.file, self.arrays = folder / "scores.npz", {}

    def add(self, name: str, values_RL: np.ndarray, mask_RL: np.ndarray) -> None:
        """Prints the mean over the tokens of `mask_RL`, with a bootstrap interval over rows, and keeps both sums."""
        self.arrays[name] = np.stack([np.where(mask_RL, values_RL, 0).sum(1), mask_RL.sum(1)])
        print(f"  {name}:", interval(*self.arrays[name]), flush=True)
        np.savez(self.file, **self.arrays)


def interval(sums_R: np.ndarray, counts_R: np.ndarray) -> str:
    """Their quotient, with a bootstrap interval over rows."""
    drawn = np.random.default_rng(0).integers(len(sums_R), size=(2000, len(sums_R)))
    low, high = np.percentile(sums_R[drawn].sum(1) / counts_R[drawn].sum(1), [2.5, 97.5])
    return f"{sums_R.sum() / counts_R.sum():.3f} [{low:.3f}, {high:.3f}]"


def compare(options: argparse.Namespace) -> None:
    """Prints how far what was asked of the same tokens is apart, for all pairs of arms and contexts."""
    found = {}
    for arm in ARMS:
        file = Path(options.output) / f"{arm}-{options.seed}" / "scores.npz"
        found |= {(arm, name): scores for name, scores in np.load(file).items()} if file.exists() else {}
    for one, other in itertools.combinations(found, 2):
        (sums, counts), (others, other_counts) = found[one], found[other]
        if one[1].split(",")[0] == other[1].split(",")[0] and np.array_equal(counts, other_counts):
            print(f"{' '.join(other)} minus {' '.join(one)}: {interval(others - sums, counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=64, help="tokens of a piece")
    parser.add_argument("--bytes", action="store_true", help="tokens are bytes; default: 512 pieces of words")
    parser.add_argument("--pieces", type=int, default=4096)
    parser.add_argument("--arms", default="causal,t5,fim")
    parser.add_argument("--gin", action="append", default=[], help="a binding, of all arms, or of one: fim:NAME=VALUE")
    options = parser.parse_args()
    for arm in options.arms.split(","):
        experiment = trained(arm, options)
        report(arm, experiment, options)
    compare(options)


def held_out(experiment: Experiment, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of held-out documents, int [R, length], at most `MOST` of one and `count` of all; tokens before them.

    None holds the end of its document, which fill in the middle would put elsewhere.
    """
    documents, bos = stored_tokens(experiment.data / "cache", "validation"), experiment.tokenizer.bos_id
    starts = [(tokens, start) for tokens in documents for start in range(0, len(tokens) - length, length)[:MOST]]
    texts = np.array([tokens[start : start + length] for tokens, start in starts[:count]], np.int32)
    return texts, np.array([tokens[start - 1] if start else bos for tokens, start in starts[:count]], np.int32)


def report(arm: str, experiment: Experiment, options: argparse.Namespace) -> None:
    """Prints the scores of one arm."""
    vocabulary, scores = experiment.task.vocabulary, Scores(Path(options.output) / f"{arm}-{options.seed}")
    spans, causal = SpanCorruption().bind(vocabulary), Causal()
    texts, before = held_out(experiment, options.length, options.pieces)
    packed = packed_rows(texts, before)
    print(json.dumps({"arm": arm, "seed": options.seed, "steps": options.steps, "pieces": len(texts)}))
    if arm == "t5":
        batch = spans.finish(packed, host_rng(options.seed, "spans"))
        is_noise = (batch["loss_weights"] > 0) & is_text(vocabulary, batch["targets"])
        scores.add("spans, text around them", nats(experiment, spans, batch), is_noise)
        return
    plain = nats(experiment, causal, causal.finish(packed, None))
    pieces, noise, counts = allot(
        take_apart(texts, packed["segment_ids"]), len(texts), spans.noise, np.zeros(len(texts), int),
        spans.room(texts.shape[1]),
    )  # fmt: skip
    is_noise = spans_of(pieces.lengths_P, noise, counts, host_rng(options.seed, "spans"))[0].reshape(texts.shape)
    scores.add("spans, text before them", plain, is_noise)
    scores.add("all tokens, text before them", plain, np.ones_like(plain))
    middles(experiment, texts, before, plain, scores, options.seed, infills=arm == "fim")


def middles(
    experiment: Experiment, texts: np.ndarray, before: np.ndarray, plain: np.ndarray, scores: Scores, seed: int,
    *, infills: bool,
) -> None:  # fmt: skip
    """Scores of what two random cuts enclose: given what is before it, and, in both orders, all around it.

    Args:
        experiment: whose model is asked.
        texts, before: pieces, int [R, L], and the tokens in front of them.
        plain: the model's negative log-likelihood of each of their tokens, [R, L].
        scores: where to put them.
        seed: of the cuts.
        infills: whether the model has seen rearranged texts.
    """
    vocabulary, length = experiment.task.vocabulary, texts.shape[1]
    orders = {"suffix last": 0.0, "suffix first": 1.0}  # the same cuts in both
    found = {name: FillInTheMiddle(rate=1.0, spm_rate=rate).bind(vocabulary) for name, rate in orders.items()}
    rows = packed_rows(texts, before, ROOM)
    batches = {name: objective.finish(rows, host_rng(seed, "middles")) for name, objective in found.items()}
    batch, end, place = batches["suffix last"], length + ROOM - 1, np.arange(length + ROOM)  # the end is not counted
    after_mark = np.cumsum(batch["tokens"] == vocabulary.sentinel(MIDDLE), axis=1) > 0
    sizes = (after_mark & (place < end)).sum(1, keepdims=True)
    starts = (batch["targets"] == vocabulary.sentinel(SUFFIX)).argmax(1)[:, None] - 1
    in_text = ((place >= starts) & (place < starts + sizes))[:, :length]
    scores.add("middles, prefix alone", plain, in_text)
    is_middle = (place >= end - sizes) & (place < end)
    for name, batch in batches.items() if infills else ():
        assert (batch["targets"][is_middle] == texts[in_text]).all()
        scores.add(f"middles, prefix and suffix, {name}", nats(experiment, found[name], batch), is_middle)


if __name__ == "__main__":
    sys.exit(exit_code(main, "infilling"))
