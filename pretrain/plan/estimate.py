"""Memory and time of a training step by formula, where nothing is compiled: GPUs, searches, and what would make it fit.

What a chip holds: its share of parameters, gradients and Adam's moments, split as `Parallelism.zero` says; what the
remat policy keeps of each layer; the working set of one layer and of one part of the head. What it sends: fsdp gathers
parameters (in every pass where they stay split) and sums gradients in bfloat16 for each microbatch; data sums gradients
once; tensor moves hidden states four times a layer (Austin et al. 2025, "How to Scale Your Model"). Matrix products
reach `REACHED` of the peak; then each value of a layer is written and read once a pass; fsdp, context and expert
traffic runs beside this; tensor's and that between slices is waited for. A pipeline stands idle for (S - 1) of
(M R + S - 1) ticks, with 1F1B for 2 (S - 1) of (M + 2 (S - 1)).
Good to about a third in memory and, on TPUs, to 15 % in time (docs/scale.md): compare candidates with it, and compile
what matters.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from pretrain.models.config import MINIMAL, REMAT_NAMES, TransformerConfig
from pretrain.models.flops import Flops, count_flops
from pretrain.models.mlp import parts_of
from pretrain.optim.compact import BLOCK
from pretrain.optim.optimizers import Optimizer
from pretrain.plan.chips import Pod
from pretrain.sharding.parallelism import Parallelism

COMPUTE_BYTES, FLOAT32 = 2, 4  # of an activation in bfloat16; of a gradient that is added up
PARAMETER_BYTES = {"float32": 4, "bfloat16": 2}
MOMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / BLOCK}
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
        model: its remat policy, chunks and parameters' dtype count.
        batch_size, length, microbatches: as in `Training`.
        ways: ways of each mesh axis.
        parameters: of the model.
        use, optimizer: how the mesh is used, and how moments are kept; gin's by default.
    """

    model: TransformerConfig
    batch_size: int
    length: int
    microbatches: int
    ways: Mapping[str, int]
    parameters: int
    use: Parallelism = dataclasses.field(default_factory=Parallelism)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)

    @property
    def shards(self) -> int:
        """Parts that parameters are split into where fsdp splits them."""
        return math.prod(self.ways[axis] for axis in ("fsdp", "tensor", "stage", "expert"))

    @property
    def pipeline(self) -> tuple[int, int, int]:
        """Microbatches M, rounds R and ticks M R + S - 1 of a pipeline's schedule; 1 each without stages."""
        stages = self.ways["stage"]
        microbatches, rounds = self.use.pipeline_microbatches or stages, self.use.pipeline_rounds
        return (microbatches, rounds, microbatches * rounds + stages - 1) if stages > 1 else (1, 1, 1)

    def bindings(self, other: "Setting") -> list[str]:
        """The gin bindings that lead from `other` to this one."""
        pairs = [
            ("TransformerConfig.remat", self.model.remat, other.model.remat),
            ("TransformerConfig.remat_names", self.model.remat_names, other.model.remat_names),
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
        fetched: bytes of moments that come from the host's memory for the update.
        model_flops, hardware_flops: of a step, without and with what is computed again.
        compute_seconds: of matrix products, at `REACHED` of the peak, and of the HBM.
        beside_seconds, waited_seconds: of the network at the full speed of its links, beside the products and not.
    """

    state: float
    saved: float
    working: float
    fetched: float
    model_flops: float
    hardware_flops: float
    compute_seconds: float
    beside_seconds: float
    waited_seconds: float

    @property
    def peak(self) -> float:
        """Bytes: of the backward pass, or of the update where that needs more."""
        return self.state + max(self.saved + self.working, self.fetched)

    @property
    def step_seconds(self) -> float:
        """Products with some of the network beside them, then the rest of it."""
        return max(self.compute_seconds, self.beside_seconds) + self.waited_seconds


def estimate(setting: Setting, pod: Pod) -> Estimate:
    """The step of a setting on a pod."""
    c, ways = setting.model, setting.ways
    layers = (c.num_layers + (c.encoder_layers or c.num_layers) * (c.architecture == "encoder_decoder")) / ways["stage"]
    batch_ways = ways["data"] * ways["fsdp"] * ways["expert"] * ways["context"]
    tokens = setting.batch_size * setting.length / setting.microbatches / batch_ways
    microbatches, rounds, ticks = setting.pipeline
    in_turn = microbatches > 1 and setting.use.pipeline_schedule == "1f1b"
    ticks += (ways["stage"] - 1) * in_turn  # on the way back, where most of the work is
    stretch = ticks / (microbatches * rounds)  # by what stands idle, which keeps its inputs too
    kept, values = values_of_a_layer(c, ways["tensor"])
    saved = layers * tokens * stretch * kept
    if in_turn:  # what comes into the pipeline and its derivative; into a stage, for some; layers of the one at work
        held = 2 * ways["stage"] - 1
        saved = tokens * (2 * c.embed_dim + (held * c.embed_dim + layers * kept) / microbatches)
    flops = count_flops(c, setting.length)
    repeated = _repeated(c, flops) + (flops.forward - flops.head) * in_turn
    step_tokens = setting.batch_size * setting.length
    hardware = step_tokens * (flops.training + repeated)
    passes = 3 + repeated / flops.forward
    traffic = setting.microbatches * tokens * layers * values * passes * 2 * COMPUTE_BYTES
    seconds = hardware / pod.chips / pod.peak_flops / REACHED + traffic / pod.chip.memory_bandwidth
    beside, waited = _network(setting, pod, tokens, layers)
    state, moments = _state(setting)
    return Estimate(
        state=state + (0 if setting.use.offload_optimizer else moments),
        saved=saved * COMPUTE_BYTES,
        working=_working(setting, tokens),
        fetched=moments if setting.use.offload_optimizer else 0,
        model_flops=step_tokens * flops.training,
        hardware_flops=hardware,
        compute_seconds=seconds * stretch,
        beside_seconds=beside,
        waited_seconds=waited,
    )


def saved_names(c: TransformerConfig) -> tuple[str, ...]:
    """What the remat policy keeps of a layer beside its input, of `REMAT_NAMES`."""
    return {"none": REMAT_NAMES, "minimal": MINIMAL, "named": c.remat_names, "full": (), "offload": ()}[c.remat]


def values_of_a_layer(c: TransformerConfig, tensor: int = 1) -> tuple[float, float]:
    """Values of a token in a layer: those kept for the backward pass under the remat policy, and all of them."""
    mlp = c.mlp_dim * (c.experts.top_k if c.experts else 1) / tensor
    heads, keys = (number * c.query_dim / tensor for number in (c.num_heads, c.num_kv_heads))
    values = 8 * c.embed_dim + 4 * heads + (2 + c.is_gated) * mlp
    sizes = {
        "query": heads, "key": keys, "value": keys, "attention": heads, "attention_out": c.embed_dim,
        "gate": c.is_gated * mlp, "up": mlp, "mlp_out": c.embed_dim,
    }  # fmt: skip
    kept = c.embed_dim + sum(sizes[name] for name in saved_names(c))
    return {"none": values, "offload": 0}.get(c.remat, kept), values


def _state(setting: Setting) -> tuple[float, float]:
    """Bytes of parameters with their gradients and a copy in the compute dtype, and of what the optimizer keeps."""
    count, zero = setting.parameters, setting.use.zero
    split = count / setting.shards
    whole = split * setting.ways["fsdp"]  # as ZeRO-1 and 2 leave parameters, and ZeRO-1 gradients that wait for more
    parameters = PARAMETER_BYTES[setting.model.param_dtype] + COMPUTE_BYTES
    gradients = whole if zero == 1 and setting.microbatches > 1 else split
    moments = 2 * MOMENT_BYTES[setting.optimizer.state] + (FLOAT32 if setting.optimizer.average else 0)
    return (split if zero == 3 else whole) * parameters + gradients * FLOAT32, split * moments


def _working(setting: Setting, tokens: float) -> float:
    """Bytes of one layer at work on the tokens of a tick, or of one part of the head on all, whichever is more."""
    c, tensor = setting.model, setting.ways["tensor"]
    at_once = tokens / setting.pipeline[0]
    parts = 1 if c.experts else parts_of(c.mlp_dim, c.mlp_chunks, tensor * setting.ways["fsdp"])
    mlp = c.mlp_dim * (c.experts.top_k if c.experts else 1) / tensor / parts
    heads = c.num_heads * c.query_dim / tensor
    sums = FLOAT32 * c.embed_dim if parts > 1 else 0
    layer = setting.parameters / max(c.num_layers, 1) / tensor / setting.ways["expert"]
    mlp_matrices = 0 if c.experts else (2 + c.is_gated) * c.embed_dim * c.mlp_dim / tensor
    layer -= mlp_matrices * (1 - 1 / parts)
    working = at_once * ((6 * c.embed_dim + 4 * heads + 4 * mlp) * COMPUTE_BYTES + sums) + 2 * layer * COMPUTE_BYTES
    part = (c.vocab_size or 0) / c.vocab_chunks / tensor
    head = tokens * part * 2 * FLOAT32 + c.embed_dim * part * (COMPUTE_BYTES + FLOAT32)
    return max(working, head)


def _repeated(c: TransformerConfig, flops: Flops) -> float:
    """FLOPs of a token that the backward pass does again."""
    head = flops.head if c.vocab_chunks > 1 else 0
    if c.remat == "none":
        return head
    if c.remat in ("full", "offload"):
        return flops.forward - flops.head + head
    saved = set(saved_names(c))
    projections = 0 if {"query", "key", "value"} <= saved else flops.attention_projections
    scores = 0 if "attention" in saved else flops.attention_scores
    inputs = {"gate", "up"} if c.is_gated else {"up"}
    return projections + scores + flops.mlp * len(inputs - saved) / (len(inputs) + 1) + head


def _network(setting: Setting, pod: Pod, tokens: float, layers: float) -> tuple[float, float]:
    """Seconds that one chip's links are busy in a step: beside matrix products, and while these wait."""
    ways, order = setting.ways, list(setting.ways)

    def group(axis: str) -> list[int]:
        inner = math.prod(ways[a] for a in order[order.index(axis) + 1 :])
        return [place * inner for place in range(ways[axis])]

    def seconds(axis: str, sent: float) -> float:
        return sent * (ways[axis] - 1) / ways[axis] / pod.bandwidth(group(axis)) if ways[axis] > 1 else 0.0

    share = setting.parameters / ways["tensor"] / ways["stage"] / ways["expert"]
    parts, rounds, ticks = setting.pipeline
    turns = setting.microbatches * ticks / rounds  # a stage of a pipeline gathers its layers again in each tick
    gathered = {3: 3 * turns, 2: setting.microbatches, 1: 2 * setting.microbatches}[setting.use.zero] * COMPUTE_BYTES
    once = 0 if setting.use.zero == 3 else PARAMETER_BYTES[setting.model.param_dtype]  # gathered after the update
    hidden = tokens * setting.model.embed_dim * COMPUTE_BYTES * layers * setting.microbatches
    replicas = seconds("data", 2 * FLOAT32 * setting.parameters / ways["fsdp"] / ways["tensor"] / ways["stage"])
    across = pod.is_slow(group("data"))
    beside = seconds("fsdp", share * (gathered + once)) + seconds("context", 4 * hidden)
    beside += seconds("expert", 4 * hidden) + (0.0 if across else replicas)
    passed = hidden / layers * ticks / parts if layers else 0  # from stage to stage, and back
    return beside, seconds("tensor", 8 * hidden) + seconds("stage", 2 * passed) + (replicas if across else 0.0)


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
