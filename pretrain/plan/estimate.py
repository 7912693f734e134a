"""Memory and time of a training step by formula, where nothing is compiled: GPUs, searches, and what would make it fit.

What a chip holds: its share of parameters, gradients and Adam's moments; what the remat policy keeps of each layer; the
working set of one layer and of one part of the head. What it sends: fsdp gathers parameters twice and sums gradients
once in bfloat16 for each microbatch; data sums gradients once; tensor moves hidden states four times a layer (Austin et
al. 2025, "How to Scale Your Model"). Good to about a third: compare candidates with it, and compile what matters.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from pretrain.models.config import MINIMAL, TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.chips import Pod
from pretrain.plan.shapes import count_parameters

COMPUTE_BYTES, STATE_BYTES, GRADIENT_BYTES = 2, 12, 4  # bfloat16; float32 parameters and two moments; float32


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
        compute_seconds, network_seconds: at the peak, and at the full speed of the links.
    """

    state: float
    saved: float
    working: float
    model_flops: float
    hardware_flops: float
    compute_seconds: float
    network_seconds: float

    @property
    def peak(self) -> float:
        """Bytes."""
        return self.state + self.saved + self.working

    @property
    def step_seconds(self) -> float:
        """The network beside the computation."""
        return max(self.compute_seconds, self.network_seconds)


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
    kept = {
        "none": 8 * c.embed_dim + 4 * heads + (matrices + 1) * mlp,
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
    again = {"none": 0, "minimal": flops.attention_projections, "named": flops.attention_projections}
    repeated = again.get(c.remat, flops.forward - flops.head) + (flops.head if c.vocab_chunks > 1 else 0)
    step_tokens = setting.batch_size * setting.length
    hardware = step_tokens * (flops.training + repeated)
    return Estimate(
        state=counts.total * (STATE_BYTES + GRADIENT_BYTES + COMPUTE_BYTES) / shards,
        saved=layers * tokens * kept * COMPUTE_BYTES,
        working=max(working, head),
        model_flops=step_tokens * flops.training,
        hardware_flops=hardware,
        compute_seconds=hardware / pod.chips / pod.peak_flops,
        network_seconds=_network(setting, pod, counts.total, tokens, layers),
    )


def _network(setting: Setting, pod: Pod, parameters: int, tokens: float, layers: float) -> float:
    """Seconds that one chip's links are busy in a step."""
    ways, order = setting.ways, list(setting.ways)

    def seconds(axis: str, sent: float) -> float:
        if ways[axis] == 1:
            return 0.0
        inner = math.prod(ways[a] for a in order[order.index(axis) + 1 :])
        group = [place * inner for place in range(ways[axis])]
        return sent * (ways[axis] - 1) / ways[axis] / pod.bandwidth(group)

    share = parameters / ways["tensor"] / ways["stage"] / ways["expert"] * COMPUTE_BYTES
    hidden = tokens * setting.model.embed_dim * COMPUTE_BYTES
    return (
        seconds("fsdp", 3 * share * setting.microbatches)
        + seconds("data", 2 * GRADIENT_BYTES * parameters / ways["fsdp"] / ways["tensor"] / ways["stage"])
        + seconds("tensor", 8 * hidden * layers * setting.microbatches)
        + seconds("context", 4 * hidden * layers * setting.microbatches)
        + seconds("expert", 4 * hidden * layers * setting.microbatches)
    )


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
