"""The collectives of a compiled step: kind, mesh axes, bytes and how often, from the text of the program.

Bytes a chip sends are those of the textbook's ring algorithms (Thakur et al. 2005): for n chips and an array of S bytes
that all of them hold or get together, S (n-1)/n for all-gather and reduce-scatter, twice that for all-reduce, S (n-1)/n
of a chip's own S for all-to-all, S for collective-permute. What goes between slices is written as `send` and `recv`
through the host; it counts as the collective that it does, over one chip of each slice.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from pretrain.plan.chips import Pod
from pretrain.plan.hlo import Instruction, Program

KINDS = "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute"
SCATTERED = "all-reduce-scatter"  # computations in which TPUs hide a reduce-scatter, as an all-reduce and a slice
_OPCODES = {kind + end: kind for kind in KINDS for end in ("", "-start")}
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')  # of a `send` to a chip of another slice
_COMMUNICATION = {*_OPCODES, *(kind + "-done" for kind in KINDS), "send", "recv", "send-done", "recv-done"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same chips.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes that the chips of a group differ in, joined by "+"; "?" where the groups are no such axes.
        size: chips of a group.
        count: how often in one step.
        bytes: of the whole arrays (all-gather: the result; reduce-scatter: the operand), over a step, for each chip.
        sent_bytes: what a chip sends over a step.
        seconds: for `sent_bytes` at the speed of the links.
    """

    kind: str
    axes: str
    size: int
    count: int
    bytes: int
    sent_bytes: int
    seconds: float


def sent(kind: str, size: int, operand: int, result: int) -> float:
    """Bytes that a chip sends in one collective over `size` chips, from the bytes of its operand and its result."""
    share = (size - 1) / size
    return {
        "all-gather": result * share,
        "reduce-scatter": operand * share,
        "all-reduce": 2 * operand * share,
        "all-to-all": operand * share,
        "ragged-all-to-all": operand * share,
        "collective-permute": operand,
    }[kind]


def communicates(instruction: Instruction) -> bool:
    """Whether an instruction is a collective, one end of one, or a fusion that hides one: no work of the chip's own."""
    hidden = instruction.opcode == "fusion" and any(name.startswith(SCATTERED) for name in instruction.called("calls"))
    return hidden or instruction.opcode in _COMMUNICATION


def find_collectives(program: Program, mesh: Mapping[str, int], pod: Pod) -> list[Collective]:
    """All collectives of one step, the largest first.

    Args:
        program: the compiled step.
        mesh: ways of each mesh axis, in order; devices of the program are numbered in that order.
        pod: for the speed of links.
    """
    found: dict[tuple[str, str, int], list[float]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for name, instruction, runs in program.instructions():
        kind = _OPCODES.get(instruction.opcode)
        between = _BETWEEN_SLICES.search(instruction.attributes) if instruction.opcode == "send" else None
        if kind is None and between is None:
            continue
        if kind == "all-reduce" and name.startswith(SCATTERED):
            kind = "reduce-scatter"
        operand = sum(array.bytes for arrays in program.operands(name, instruction) for array in arrays)
        result = max(instruction.bytes - (operand if instruction.opcode.endswith("-start") else 0), 0)
        if between is None:
            group = first_group(instruction.attributes, math.prod(mesh.values()))
        else:  # one chip of each slice
            kind, group = between[1].lower().replace("_", "-"), [pod.slice_chips * n for n in range(pod.slices)]
            kind, result = kind if kind in KINDS else "collective-permute", operand * len(group)
        if len(group) < 2:
            continue
        each = sent(kind, len(group), operand, result)
        whole = result if kind == "all-gather" else operand
        values = (runs, runs * whole, runs * each, runs * each / pod.bandwidth(group))
        key = kind, axes_of(group, mesh), len(group)
        found[key] = [a + b for a, b in zip(found[key], values, strict=True)]
    collectives = [
        Collective(*key, round(count), round(whole), round(each), seconds)
        for key, (count, whole, each, seconds) in found.items()
    ]
    return sorted(collectives, key=lambda c: -c.sent_bytes)


def axes_of(group: list[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes in which the devices of a group differ, e.g. "data+fsdp"; "?" when they are no such set."""
    shape = tuple(mesh.values())
    places = np.array(np.unravel_index(group, shape))
    axes = [i for i in range(len(shape)) if len(set(places[i])) > 1]
    whole = math.prod(shape[i] for i in axes) == len(group)
    return "+".join(list(mesh)[i] for i in axes) if whole else "?"


def first_group(attributes: str, devices: int) -> list[int]:
    """The devices that talk with each other in a collective: its first group, in any of HLO's four notations."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
    if pairs:
        return _chain(attributes)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return [int(device) for device in listed[1].split(",")]
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if tiled:
        shape, whole, order = (_numbers(tiled[i]) for i in (1, 2, 3))
        ids = np.arange(math.prod(whole)).reshape(whole)
        return (ids.transpose(order) if order else ids).reshape(shape)[0].tolist()
    by_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes)
    if by_mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", by_mesh[1])}
        order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", by_mesh[2])
        used = re.findall(r"'(\w+)'", by_mesh[3])
        ids = np.arange(math.prod(sizes.values()))
        if order:
            ids = ids.reshape(_numbers(order[1])).transpose(_numbers(order[2]) or None)
        ids = ids.reshape(tuple(sizes.values()))
        picked = tuple(slice(None) if axis in used else 0 for axis in sizes)
        return ids[picked].reshape(-1).tolist()
    return list(range(devices))


def _chain(attributes: str) -> list[int]:
    """The devices of the longest chain of a permutation's pairs; some of them may keep what they have."""
    text = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)[1]
    target = {int(a): int(b) for a, b in re.findall(r"(\d+),(\d+)", text)}
    longest: list[int] = []
    for source in target:
        chain = [source]
        while target.get(chain[-1], source) not in chain:
            chain.append(target[chain[-1]])
        longest = max(longest, chain, key=len)
    return sorted(longest)


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()
