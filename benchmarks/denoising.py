"""What denoising wastes on real documents, and how fast rows are corrupted.

    python benchmarks/denoising.py CACHE [--rows=256] [--seconds=2]

CACHE is the cache of a run, made with any tokenizer. For every objective and sequence length: the share of inputs and
targets that is padding, the share of the text that is in no batch (the shortest pieces of rows that hold too many), and
tokens of text corrupted a second, in one thread.
"""

import argparse
import sys
import time

import numpy as np
from input_pipeline import Identity

from pretrain.core.errors import exit_code
from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.data.loader import make_loader
from pretrain.objectives.denoising import Denoising, MixtureOfDenoisers, SpanCorruption, TextInfilling

LENGTHS = (256, 512, 2048)
KINDS = {"T5": SpanCorruption, "UL2": MixtureOfDenoisers, "BART": TextInfilling}


def measure(cache: str, objective: Denoising, length: int, rows: int, seconds: float) -> str:
    """One line of the table."""
    columns = objective.packed_length(length)
    loader = make_loader(cache, split="train", objective=Identity(), batch_size=rows, sequence_length=columns, seed=0)
    packed = loader.batch(0)
    tokens = np.count_nonzero(packed["segment_ids"])
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        batch = objective.finish(packed, host_rng(0, "finish", times))
        times += 1
    speed = times * tokens / (time.perf_counter() - started)
    if objective.layout == "decoder":
        padding = [np.mean(batch["segment_ids"] == 0)]
    else:
        padding = [np.mean(batch[f"{side}_segment_ids"] == 0) for side in ("inputs", "targets")]
    shares = ", ".join(f"{each:.2%}" for each in padding)
    return f"{columns} | {shares} | {left_out(packed, batch):.3%} | {speed / 1e6:.1f}M"


def left_out(packed: dict, batch: dict) -> float:
    """Share of the text whose piece is in no batch."""
    segments = batch.get("inputs_segment_ids", batch.get("segment_ids"))
    lost = total = 0
    for row, found in zip(packed["segment_ids"], segments, strict=True):
        sizes = np.bincount(row)
        sizes[0], kept = 0, np.isin(np.arange(len(sizes)), found)
        lost, total = lost + sizes[~kept].sum(), total + sizes.sum()
    return lost / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("cache")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    vocabulary = Vocabulary(1 << 20, num_sentinels=1000)
    print("objective | layout | length | text | padding | left out | tokens/s")
    for name, kind in KINDS.items():
        for layout in ("encoder_decoder", "decoder"):
            for length in LENGTHS:
                objective = kind(layout=layout, sentinels=1000).bind(vocabulary)
                line = measure(options.cache, objective, length, options.rows, options.seconds)
                print(f"{name} | {layout} | {length} | {line}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main, "denoising"))
