"""FLOPs, memory traffic and a roofline time of a compiled step, from the text of the program (Williams et al. 2009).

A kernel takes as long as its FLOPs at the chip's peak or its bytes at the memory's bandwidth, whichever is more;
kernels run one after another; collectives run beside them. Nothing else costs time, so a real step is slower.
"""

import dataclasses
import functools
import math
import re

from pretrain.plan.chips import Pod
from pretrain.plan.collectives import Collective, communicates
from pretrain.plan.hlo import Array, Instruction, Program

# Matrix products of jax's splash attention kernels, each 2 B H L S Q FLOPs: scores and outputs forward; backward the
# scores again and four gradients, of which the probabilities' and the scores again in the second kernel.
SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "copy-done", "async-done", "async-update", "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """One step.

    Attributes:
        hardware_flops: what the matrix units of all chips do.
        memory_bytes: traffic of one chip's HBM.
        kernel_seconds: all kernels one after another, each at its roofline.
        collective_seconds: all collectives one after another.
        intensity: FLOPs for each byte of a chip's memory traffic.
    """

    hardware_flops: float
    memory_bytes: float
    kernel_seconds: float
    collective_seconds: float
    intensity: float

    @property
    def step_seconds(self) -> float:
        """Kernels with collectives beside them."""
        return max(self.kernel_seconds, self.collective_seconds)


def roofline(program: Program, collectives: list[Collective], pod: Pod) -> Roofline:
    """The roofline of a step on one chip of `pod`; FLOPs are of all its chips."""
    flops, traffic, seconds = 0.0, 0.0, 0.0
    for name, instruction, runs in program.instructions():
        if name in program.fused or instruction.opcode in _FREE or communicates(instruction):
            continue
        each_flops = _flops(program, name, instruction)
        each_bytes = _traffic(program, name, instruction)
        flops, traffic = flops + runs * each_flops, traffic + runs * each_bytes
        seconds += runs * max(each_flops / pod.peak_flops, each_bytes / pod.chip.memory_bandwidth)
    networks = sum(collective.seconds for collective in collectives)
    return Roofline(flops * pod.chips, traffic, seconds, networks, flops / max(traffic, 1))


def _flops(program: Program, computation: str, instruction: Instruction) -> float:
    """Of matrix products and convolutions, inside fusions too, and of splash attention's kernels."""
    inside = [(name, i) for called in instruction.called() for name, i in _all_inside(program, called)]
    return sum(_own_flops(program, name, i) for name, i in [(computation, instruction), *inside])


def _all_inside(program: Program, computation: str) -> list[tuple[str, Instruction]]:
    found = []
    for instruction in program.computations.get(computation, {}).values():
        found.append((computation, instruction))
        for called in instruction.called():
            found += _all_inside(program, called)
    return found


def _own_flops(program: Program, computation: str, instruction: Instruction) -> float:
    if instruction.opcode == "custom-call":
        return _kernel_flops(instruction)
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (arrays[0].shape for arrays in program.operands(computation, instruction)[:2])
    result = math.prod(instruction.outputs[0].shape)
    if instruction.opcode == "dot":
        contracted = _numbers(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1])
        return 2 * result * math.prod(left[d] for d in contracted)
    return _convolution_flops(left, right, instruction)


def _convolution_flops(left: tuple[int, ...], right: tuple[int, ...], instruction: Instruction) -> float:
    """TPUs write matrix products as convolutions, whose windows then lie mostly in padding, which is not multiplied."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    inputs, kernel, outputs = labels[1], labels[2], labels[3]
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or "  ")[1])
    )
    result = instruction.outputs[0].shape
    total = 2 * result[outputs.index("b")] * result[outputs.index("f")] * right[kernel.index("i")]
    spatial = [c for c in outputs if c.isdigit()]
    for place, label in enumerate(spatial):
        part = lambda key, default, place=place: window[key].split("x")[place] if key in window else default  # noqa: E731
        low = int(part("pad", "0_0").split("_")[0])
        total *= _inside(
            result[outputs.index(label)], right[kernel.index(label)], left[inputs.index(label)], int(part("stride", 1)),
            low, int(part("lhs_dilate", 1)), int(part("rhs_dilate", 1)),
        )  # fmt: skip
    return total


@functools.lru_cache(maxsize=4096)
def _inside(result: int, window: int, length: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    """Pairs of a place in the result and one in the window that meet an element of the input."""
    count = 0
    for offset in range(window):
        places = (start * stride - low + offset * kernel_dilate for start in range(result))
        count += sum(0 <= p <= (length - 1) * dilate and p % dilate == 0 for p in places)
    return count


def _kernel_flops(instruction: Instruction) -> float:
    """Of a splash attention kernel, from the shapes of its operands; 0 for other custom calls."""
    found = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", instruction.name)
    constraints = re.search(r"operand_layout_constraints=\{(.*)\}\}?", instruction.attributes)
    if not found or not constraints:
        return 0
    arrays_in = re.findall(r"(\w+)\[([\d,]*)\]\{", constraints[1])
    shapes = [(dtype, _numbers(sizes)) for dtype, sizes in arrays_in]
    # [batch, heads, length, head dim] each; XLA may drop a batch of one row.
    queries, keys = [shape for dtype, shape in shapes if dtype in ("bf16", "f32") and len(shape) > 2][:2]
    pairs = math.prod(queries[:-2]) * queries[-2] * keys[-2]
    # Places of queries come with a causal mask alone; of one row, the two arrays of segments have two dimensions too.
    flat = sum(len(shape) == 2 for _, shape in shapes)
    is_causal = flat > (2 if len(queries) == 3 else 0)
    return SPLASH_PRODUCTS[found[1]] * 2 * pairs * queries[-1] * (0.5 if is_causal else 1.0)


def _traffic(program: Program, computation: str, instruction: Instruction) -> float:
    """Bytes of HBM that a kernel reads and writes; of an array it only slices, the slice."""
    operands = program.operands(computation, instruction)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(instruction.outputs)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(operands[1])
    if instruction.opcode.endswith("-start"):  # its result holds operand and result
        return _in_memory(instruction.outputs[:2])
    fused = program.computations.get((instruction.called("calls") or [""])[0])
    if instruction.opcode != "fusion" or fused is None:
        return _in_memory(instruction.outputs) + sum(_in_memory(each) for each in operands)
    parameters = sorted(
        (i for i in fused.values() if i.opcode == "parameter"), key=lambda i: int(i.attributes.split(",")[0])
    )
    reads = sum(_read(parameter, operand, fused) for parameter, operand in zip(parameters, operands, strict=False))
    return reads + _written(instruction, fused)


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _read(parameter: Instruction, operand: tuple[Array, ...], fused: dict[str, Instruction]) -> int:
    users = [i for i in fused.values() if parameter.name in i.operands]
    if users and all(i.opcode in ("dynamic-slice", "slice") for i in users):
        return min(sum(i.bytes for i in users), _in_memory(operand))
    if users and all(i.opcode == "dynamic-update-slice" and i.operands[0] == parameter.name for i in users):
        return 0  # updated in place
    return _in_memory(operand)


def _written(instruction: Instruction, fused: dict[str, Instruction]) -> int:
    root = next(i for i in fused.values() if i.is_root)
    while root.opcode == "bitcast":
        root = fused[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return fused[root.operands[1]].bytes
    return _in_memory(instruction.outputs)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
