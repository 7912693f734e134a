"""How the ways of a mesh are used where there is a choice; `MeshConfig` says how many ways there are."""

import dataclasses
from typing import Literal

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Parallelism:
    """Choices that go with a mesh; each matters only where its axis has more than one way.

    Attributes:
        context: how a part of a sequence sees the rest: "all_gather" (every device gets all keys and values; Llama 3,
            2024), "ring" (keys and values go round, Liu et al. 2023) or "ulysses" (meanwhile heads are split in place
            of the sequence, Jacobs et al. 2023).
        zero: what fsdp splits (Rajbhandari et al. 2020): 1, optimizer state; 2, gradients that wait for more, too; 3,
            parameters, too.
        offload_optimizer: optimizer state waits in the host's memory between updates.
        pipeline_microbatches: parts of a batch that go through the stages one after another; None for as many as there
            are stages. More of them leave the stages less idle.
        pipeline_rounds: times each part goes round the stages, each of which holds as many pieces of the stack; 1 is
            GPipe's schedule, more the interleaved one.
        pipeline_schedule: "gpipe", or "1f1b" (PipeDream-flush, Narayanan et al. 2021), whose stages hold what came into
            them for about as many microbatches as there are stages, not for all; it makes the layers once more.
        pipeline_remat: a stage keeps only what comes into it, as GPipe's own, and makes its layers again whatever
            `TransformerConfig.remat` keeps of them.
    """

    context: Literal["all_gather", "ring", "ulysses"] = "all_gather"
    zero: Literal[1, 2, 3] = 3
    offload_optimizer: bool = False
    pipeline_microbatches: int | None = None
    pipeline_rounds: int = 1
    pipeline_schedule: Literal["gpipe", "1f1b"] = "gpipe"
    pipeline_remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for name in ("pipeline_microbatches", "pipeline_rounds"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"Parallelism.{name} must be >= 1, got {value}")
        check(
            self.pipeline_schedule == "gpipe" or self.pipeline_rounds == 1,
            f"Parallelism.pipeline_schedule = '1f1b' goes round once; pipeline_rounds is {self.pipeline_rounds}",
        )
