"""A gin run file for a plan, ready to train."""

import math

from pretrain.plan.planner import LENGTH, SHAPE_FIELDS, Plan
from pretrain.plan.shapes import count_parameters

TEMPLATE = """# {params:.3g} parameters on {tokens:.3g} tokens ({ratio:.1f} a parameter), {flops:.3g} FLOPs; law: {law}.
#
#   pretrain run --gin_file={name} --workdir=runs/planned --input='corpus/*.jsonl.gz'

include 'gin_configs/runs/quickstart.gin'

TRAIN_STEPS = {steps}
BATCH_SIZE = {batch}
SEQUENCE_LENGTH = {length}
LEARNING_RATE = {rate:.3g}
VOCAB_SIZE = {vocab_size}
LOG_EVERY = 10
CHECKPOINT_EVERY = {checkpoint}
EVAL_EVERY = {checkpoint}
REMAT = 'minimal'

{shape}
TransformerConfig.tie_embeddings = {tied}
TransformerConfig.max_length = {length}
TransformerConfig.scan_unroll = 1

Schedule.kind = 'cosine'
Schedule.warmup_steps = {warmup}
Schedule.final_ratio = 0.1
Training.head_chunks = {chunks}
"""


def run_file(plan: Plan, name: str) -> str:
    """The text of a run file; batch and steps are rounded to whole sequences, and a small run gets shorter ones."""
    length = LENGTH if plan.chosen.params > 5e7 else 256
    batch = max(8, 2 ** round(math.log2(max(1, plan.batch_tokens / length))))
    steps = max(1, round(plan.chosen.tokens / (batch * length)))
    fields = [field for field in SHAPE_FIELDS if field != "vocab_size"]
    shape = "\n".join(f"TransformerConfig.{field} = {getattr(plan.shape, field)!r}" for field in fields)
    return TEMPLATE.format(
        params=count_parameters(plan.shape).total, tokens=steps * batch * length, ratio=plan.chosen.tokens_per_param,
        flops=plan.flops, law=plan.law, name=name, steps=steps, batch=batch, length=length, rate=plan.learning_rate,
        vocab_size=plan.shape.vocab_size, checkpoint=max(1, min(1000, steps // 4)), shape=shape,
        tied=plan.shape.tie_embeddings, warmup=max(1, min(2000, steps // 50)), chunks=8 if length > 256 else 1,
    )  # fmt: skip
