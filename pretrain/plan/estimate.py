"""Memory and time of a training step by formula, where nothing is compiled: GPUs, searches, and what would make it fit.

What a chip holds: its share of parameters, gradients and Adam's moments; what the remat policy keeps of each layer; the
working set of one layer and of one part of the head. What it sends: fsdp gathers parameters twice and sums gradients
once in bfloat16 for each microbatch; data sums gradients once; tensor moves hidden states four times a layer (Austin et
al. 2025, "How to Scale Your Model"). Matrix products reach `REACHED` of the peak; then each value of a layer is written
and read once a pass; fsdp, context and expert traffic runs beside this; tensor's and that between slices is waited for.
Good to about a third in memory and, on TPUs, to 15 % in time (docs/scale.md): compare candidates with it, and compile
what matters.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from pretrain.models.config import MINIMAL, TransformerConfig
from pretrain.models.flops import Flops, count_flops
from pretrain.plan.chips import Pod
from pretrain.plan.shapes import count_parameters

COMPUTE_BYTES, STATE_BYTES, GRADIENT_BYTES = 2, 12, 4  # bfloat16; float32 parameters and two moments; float32
# Share of the peak that matrix products reach in a step: fits the 61.1 % MFU of MaxText's 16B, fully sharded and
# rematerialised, on 256 chips of v5e (docs/scale.md).
REACHED = 0.89
ASSUMPTIONS = (
    f"matrix products at {REACHED:.0%} of the chip's peak, then each value of a layer written and read once a pass",
    "links at full speed: beside the products for fsdp, data, context and expert; tensor and slices are waited for",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a user can change without changing what is learned.

    Attributes:
        model: its remat policy and vocabulary chunks count.
        batch_size, length, microbatches: as in `Training`.
        ways: ways of each mesh axis.
    """

    model: TransformerConfig
    batch_size: int
    length: int
    microbatches: int
    ways: Mapping[str, int]

    def bindings(self, other: "Setting") -> list[str]:
        """The gin bindings that lead from `other` to this one."""
        pairs = [
            ("TransformerConfig.remat", self.model.remat, other.model.remat),
            ("TransformerConfig.vocab_chunks", self.model.vocab_chunks, other.model.vocab_chunks),
            ("Training.microbatches", self.microbatches, other.microbatches),
            *((f"MeshConfig.{axis}", self.ways[axis], other.ways[axis]) for axis in self.ways),
        ]
        return [f"--gin.{name}={mine!r}" for name, mine, theirs in pairs if mine != theirs]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes and seconds on one chip, FLOPs on all.

    Attributes:
        state, saved, working: bytes of parameters, gradients and moments; kept for the backward pass; of one layer or
            one part of the head at work.
        model_flops, hardware_flops: of a step, without and with what is computed again.
        compute_seconds: of matrix products, at `REACHED` of the peak, and of the HBM.
        beside_seconds, waited_seconds: of the network at the full speed of its links, beside the products and not.
    """

    state: float
    saved: float
    working: float
    model_flops: float
    hardware_flops: float
    compute_seconds: float
    beside_seconds: float
    waited_seconds: float

    @property
    def peak(self) -> float:
        """Bytes."""
        return self.state + self.saved + self.working

    @property
    def step_seconds(self) -> float:
        """Products with some of the network beside them, then the rest of it."""
        return max(self.compute_seconds, self.beside_seconds) + self.waited_seconds


def estimate(setting: Setting, pod: Pod) -> Estimate:
    """The step of a setting on a pod."""
    c, ways = setting.model, setting.ways
    counts = count_parameters(c)
    shards = ways["fsdp"] * ways["tensor"] * ways["stage"] * ways["expert"]
    layers = (c.num_layers + (c.encoder_layers or c.num_layers) * (c.architecture == "encoder_decoder")) / ways["stage"]
    batch_ways = ways["data"] * ways["fsdp"] * ways["expert"] * ways["context"]
    tokens = setting.batch_size * setting.length / setting.microbatches / batch_ways
    mlp = c.mlp_dim * (c.experts.top_k if c.experts else 1) / ways["tensor"]
    heads = c.num_heads * c.query_dim / ways["tensor"]
    matrices = 1 + c.is_gated
    values = 8 * c.embed_dim + 4 * heads + (matrices + 1) * mlp  # of a token in a layer
    kept = {
        "none": values,
        "minimal": c.embed_dim + heads + matrices * mlp,
        "named": c.embed_dim + heads * sum(name not in MINIMAL[1:] for name in c.remat_names) + matrices * mlp,
        "full": c.embed_dim,
        "offload": 0,
    }[c.remat]
    layer = counts.total / max(c.num_layers, 1) / ways["tensor"] / ways["expert"]
    working = tokens * (6 * c.embed_dim + 4 * heads + 4 * mlp) * COMPUTE_BYTES + 2 * layer * COMPUTE_BYTES
    part = c.vocab_size / c.vocab_chunks / ways["tensor"]
    head = tokens * part * 2 * 4 + c.embed_dim * part * (COMPUTE_BYTES + 4)
    flops = count_flops(c, setting.length)
    repeated = _repeated(c, flops)
    step_tokens = setting.batch_size * setting.length
    hardware = step_tokens * (flops.training + repeated)
    passes = 3 + repeated / flops.forward
    traffic = setting.microbatches * tokens * layers * values * passes * 2 * COMPUTE_BYTES
    beside, waited = _network(setting, pod, counts.total, tokens, layers)
    return Estimate(
        state=counts.total * (STATE_BYTES + GRADIENT_BYTES + COMPUTE_BYTES) / shards,
        saved=layers * tokens * kept * COMPUTE_BYTES,
        working=max(working, head),
        model_flops=step_tokens * flops.training,
        hardware_flops=hardware,
        compute_seconds=hardware / pod.chips / pod.peak_flops / REACHED + traffic / pod.chip.memory_bandwidth,
        beside_seconds=beside,
        waited_seconds=waited,
    )


def _repeated(c: TransformerConfig, flops: Flops) -> float:
    """FLOPs of a token that the backward pass does again."""
    head = flops.head if c.vocab_chunks > 1 else 0
    if c.remat == "none":
        return head
    if c.remat in ("full", "offload"):
        return flops.forward - flops.head + head
    saved = set(MINIMAL if c.remat == "minimal" else c.remat_names)
    projections = 0 if {"query", "key", "value"} <= saved else flops.attention_projections
    scores = 0 if "attention" in saved else flops.attention_scores
    inputs = {"gate", "up"} if c.is_gated else {"up"}
    return projections + scores + flops.mlp * len(inputs - saved) / (len(inputs) + 1) + head


def _network(setting: Setting, pod: Pod, parameters: int, tokens: float, layers: float) -> tuple[float, float]:
    """Seconds that one chip's links are busy in a step: beside matrix products, and while these wait."""
    ways, order = setting.ways, list(setting.ways)

    def group(axis: str) -> list[int]:
        inner = math.prod(ways[a] for a in order[order.index(axis) + 1 :])
        return [place * inner for place in range(ways[axis])]

    def seconds(axis: str, sent: float) -> float:
        return sent * (ways[axis] - 1) / ways[axis] / pod.bandwidth(group(axis)) if ways[axis] > 1 else 0.0

    share = parameters / ways["tensor"] / ways["stage"] / ways["expert"] * COMPUTE_BYTES
    hidden = tokens * setting.model.embed_dim * COMPUTE_BYTES * layers * setting.microbatches
    replicas = seconds("data", 2 * GRADIENT_BYTES * parameters / ways["fsdp"] / ways["tensor"] / ways["stage"])
    across = pod.is_slow(group("data"))
    beside = seconds("fsdp", 3 * share * setting.microbatches) + seconds("context", 4 * hidden)
    beside += seconds("expert", 4 * hidden) + (0.0 if across else replicas)
    return beside, seconds("tensor", 8 * hidden) + (replicas if across else 0.0)


def candidates(start: Setting, pod: Pod) -> Iterator[Setting]:
    """Meshes of data, fsdp and tensor x remat x microbatches that the batch and the heads allow."""
    whole = start.ways["data"] * start.ways["fsdp"] * start.ways["tensor"]
    kv_heads = start.model.num_kv_heads
    tensors = [t for t in (1, 2, 4, 8, 16) if whole % t == 0 and kv_heads % t == 0]
    datas = [d for d in _divisors(whole) if d <= 16 or d == whole]
    for tensor, data, remat, microbatches in itertools.product(
        tensors, datas, ("none", "minimal", "full"), (1, 2, 4, 8, 16)
    ):
        fsdp, rest = divmod(whole, data * tensor)
        ways = {**start.ways, "data": data, "fsdp": fsdp, "tensor": tensor}
        rows = data * fsdp * start.ways["expert"]
        if rest or start.batch_size % (microbatches * rows) or (pod.slices > 1 and data % pod.slices):
            continue
        model = dataclasses.replace(start.model, remat=remat, remat_names=())
        yield dataclasses.replace(start, model=model, microbatches=microbatches, ways=ways)


def changes_that_fit(now: Setting, peak: float, pod: Pod, count: int = 3) -> list[dict]:
    """The cheapest changes in time that would bring a peak down to the chip's memory, by the formula's difference."""
    base = estimate(now, pod)
    found = []
    for chunks, other in itertools.product({now.model.vocab_chunks, 8, 16}, candidates(now, pod)):
        setting = dataclasses.replace(other, model=dataclasses.replace(other.model, vocab_chunks=chunks))
        guess = estimate(setting, pod)
        new_peak, bindings = peak + guess.peak - base.peak, setting.bindings(now)
        if bindings and new_peak <= pod.chip.memory:
            slower = guess.step_seconds / base.step_seconds - 1
            found.append({"bindings": " ".join(bindings), "peak": new_peak, "slower": slower})
    found.sort(key=lambda change: (round(change["slower"], 3), len(change["bindings"]), change["peak"]))
    if found:
        return found[:count]
    more = next((factor for factor in (2, 4, 8, 16, 32) if base.state / factor < pod.chip.memory / 2), None)
    note = f"{more} times the chips" if more else "a smaller model"
    return [{"bindings": f"{note}: nothing else is enough", "peak": peak / (more or 1), "slower": 0.0}]


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
