"""What both sides of a gap are worth: span corruption and fill in the middle against a causal model.

    python benchmarks/infilling.py DATA OUTPUT [--steps=600] [--length=64] [--seed=0]

DATA is the folder of a run with a corpus, whose cache is made with 103 sentinels when it is not there. Three run files
(quickstart, t5_quickstart, fim_quickstart) train models of one width, each for so many steps of `TOKENS` tokens in rows
of --length. All are asked for the same tokens of held-out documents, in up to 8 pieces a document, teacher-forced:

**spans** that T5's noise takes out: T5 sees the text around them, the causal model all text before them;
**middles** between two random cuts: given prefix and suffix (FIM in PSM order), or the prefix alone.

Prints nats per token with a 95 % interval over pieces, and the bits per byte of plain causal scoring.
"""

import argparse
import json

import jax
import numpy as np

from pretrain.core.rng import host_rng
from pretrain.data.documents import stored_tokens
from pretrain.experiment import Experiment
from pretrain.objectives.causal import Causal
from pretrain.objectives.denoising import SpanCorruption
from pretrain.objectives.fill_in_the_middle import MIDDLE, ROOM, FillInTheMiddle
from pretrain.objectives.losses import cross_entropy
from pretrain.objectives.pieces import take_apart
from pretrain.objectives.spans import allot, spans_of

TOKENS = 2048  # of a step
ARMS = {"causal": "quickstart", "t5": "t5_quickstart", "fim": "fim_quickstart"}
SMALL = (
    "TransformerConfig.num_layers=2", "TransformerConfig.embed_dim=128", "TransformerConfig.num_heads=4",
    "TransformerConfig.mlp_dim=344", "VOCAB_SIZE=512", "EVAL_EVERY=0",
    "TokenizerConfig.extra_ids=103",
)  # fmt: skip


def trained(arm: str, options: argparse.Namespace) -> Experiment:
    """The experiment of an arm, trained."""
    bindings = [*SMALL, f"Experiment.data='{options.data}'", f"TRAIN_STEPS={options.steps}", f"SEED={options.seed}"]
    bindings += [f"BATCH_SIZE={TOKENS // options.length}", f"SEQUENCE_LENGTH={options.length}"]
    bindings += [f"CHECKPOINT_EVERY={options.steps}", "CacheConfig.seed=0"]
    file = f"gin_configs/runs/{ARMS[arm]}.gin"
    experiment = Experiment.from_gin([file], bindings, workdir=f"{options.output}/{arm}-{options.seed}")
    experiment.cache()
    experiment.train()
    return experiment


def nats(experiment: Experiment, objective, batch: dict) -> np.ndarray:
    """Negative log-likelihood of every target of a batch."""
    _, params = experiment.checkpoint()

    @jax.jit
    def of(params, batch):
        module = experiment.model.module(params)
        logits = objective.head(module, objective.forward(module, batch).hidden, batch)
        return cross_entropy(logits, batch["targets"])[0]

    size = 32
    parts = [
        {name: array[start : start + size] for name, array in batch.items()}
        for start in range(0, len(batch["targets"]), size)
    ]
    return np.concatenate([of(params, part) for part in parts])


def packed_rows(texts: np.ndarray, bos: int, room: int = 0) -> dict[str, np.ndarray]:
    """Each text in a row of its own, with room after it."""
    rows, length = len(texts), texts.shape[1] + room
    first = np.zeros((rows, length), np.int32)
    first[:, 0] = bos
    return {
        "tokens": np.pad(texts, ((0, 0), (0, room))), "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)), "first_inputs": first,
    }  # fmt: skip


def mean_and_interval(values_RL: np.ndarray, mask_RL: np.ndarray) -> str:
    """Mean over the tokens of `mask_RL`, with a bootstrap interval over rows."""
    sums, counts = (values_RL * mask_RL).sum(1), mask_RL.sum(1)
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return f"{sums.sum() / counts.sum():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=64, help="of a row; pieces are 4 tokens shorter")
    parser.add_argument("--pieces", type=int, default=2048)
    parser.add_argument("--arms", default="causal,t5,fim")
    options = parser.parse_args()
    for arm in options.arms.split(","):
        experiment = trained(arm, options)
        report(arm, experiment, options)


def report(arm: str, experiment: Experiment, options: argparse.Namespace) -> None:
    """Prints the scores of one arm."""
    vocabulary, bos, eos = experiment.task.vocabulary, experiment.tokenizer.bos_id, experiment.tokenizer.eos_id
    documents, piece = list(stored_tokens(experiment.data / "cache", "validation")), options.length - ROOM
    starts = [(tokens, start) for tokens in documents for start in range(0, len(tokens) - piece + 1, piece)[:8]]
    texts = np.array([tokens[start : start + piece] for tokens, start in starts[: options.pieces]], np.int32)
    packed, causal = packed_rows(texts, bos), Causal()
    print(json.dumps({"arm": arm, "seed": options.seed, "steps": options.steps, "pieces": len(texts)}))
    spans, fim = SpanCorruption().bind(vocabulary), FillInTheMiddle(rate=1.0, spm_rate=0.0).bind(vocabulary)
    if arm == "t5":
        batch = spans.finish(packed, host_rng(options.seed, "spans"))
        found = nats(experiment, spans, batch)
        is_text = (batch["targets"] < vocabulary.text_size) & (np.cumsum(batch["targets"] == eos, axis=1) == 0)
        print("  spans, text around them:", mean_and_interval(found, is_text), flush=True)
        return
    plain = nats(experiment, causal, causal.finish(packed, None))
    pieces, noise, counts = allot(
        take_apart(texts, packed["segment_ids"]), len(texts), spans.noise, np.zeros(len(texts), int), spans.room(piece)
    )
    is_noise = spans_of(pieces.lengths_P, noise, counts, host_rng(options.seed, "spans"))[0].reshape(texts.shape)
    print("  spans, text before them:", mean_and_interval(plain, is_noise), flush=True)
    batch = fim.finish(packed_rows(texts, bos, ROOM), host_rng(options.seed, "middles"))
    is_middle = np.cumsum(batch["tokens"] == vocabulary.sentinel(MIDDLE), axis=1) > 0
    is_middle &= (batch["segment_ids"] > 0) & (np.arange(is_middle.shape[1]) < piece + ROOM - 1)  # not the end token
    sizes, starts = is_middle.sum(1), (batch["targets"] == vocabulary.sentinel(1)).argmax(1) - 1
    place = np.arange(piece)
    middle = (place >= starts[:, None]) & (place < (starts + sizes)[:, None])
    print("  middles, prefix alone:", mean_and_interval(plain, middle), flush=True)
    if arm == "fim":
        assert (texts[middle] == batch["targets"][is_middle]).all()
        print("  middles, prefix and suffix:", mean_and_interval(nats(experiment, fim, batch), is_middle), flush=True)
    print("  bits per byte, plain:", experiment.evaluate(reuse=True)["bits_per_byte"], flush=True)


if __name__ == "__main__":
    main()
