"""Reads the text of a compiled XLA program: its instructions, and how often each runs in one step.

XLA's own cost analysis counts a loop's body once. Here a computation runs as often as those who call it, and a loop's
body as often as the loop turns: `known_trip_count` where the compiler wrote it down, else the constant that the loop's
counter is compared with (what `lax.scan` makes), over what a turn adds to the counter (2 where the compiler unrolled a
loop of its own, as it does for products whose operands go round a ring of chips).
"""

import collections
import dataclasses
import functools
import math
import re

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")  # "%loop#3" is element 3 of a tuple


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
        dtype: as HLO writes it, e.g. "bf16".
        shape: dimensions.
        on_chip: laid out in the core's own memory, not in HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.ceil(math.prod(self.shape) * BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name, opcode: as written, e.g. "fusion.3" and "fusion".
        outputs: the result's arrays; several for a tuple.
        operands: names of instructions, "name#3" for an element of a tuple.
        attributes: the rest of the line.
        is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(array.bytes for array in self.outputs)

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced function."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""

    def called(self, kind: str | None = None) -> list[str]:
        """Names of the computations it calls, all or by attribute ("body", "calls" ...)."""
        found = _CALLS.findall(self.attributes)
        return [name for key, text in found if kind in (None, key) for name in _NAME.findall(text)]


class Program:
    """A compiled module.

    Args:
        text: as `compiled.as_text()` gives it.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
                name = _NAME.search(line)[1]
                current = self.computations.setdefault(name, {})
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif line.startswith("  ") and " = " in line:
                instruction = _instruction(line)
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> dict[str, float]:
        """How often each computation runs in one run of the program; of branches, each counts whole."""
        runs: collections.Counter = collections.Counter({self.entry: 1})
        for name in self._callers_first():
            for instruction in self.computations[name].values():
                times = self.trips(instruction) if instruction.opcode == "while" else 1
                for called in instruction.called():
                    runs[called] += runs[name] * times
        return dict(runs)

    def trips(self, loop: Instruction) -> int:
        """Turns of a while loop; 1 where the program does not say, which `unknown_loops` then names."""
        known = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        constants = set()
        for name in loop.called("condition"):
            for each in self._reached(name):
                constants |= {
                    int(i.attributes)
                    for i in self.computations[each].values()
                    if i.opcode == "constant" and i.attributes.isdigit() and i.outputs[0].dtype in ("s32", "u32", "s64")
                }
        if len(constants) == 1:
            return -(-constants.pop() // self._step(loop))
        self.unknown_loops.append(loop.name)
        return 1

    def _step(self, loop: Instruction) -> int:
        """What one turn adds to the loop's counter; 1 where the body does not show it."""
        condition, body = (self.computations.get(loop.called(kind)[0], {}) for kind in ("condition", "body"))
        compared = {_element(i) for i in condition.values() if i.opcode == "get-tuple-element"}
        root = next((i for i in body.values() if i.is_root and i.opcode == "tuple"), None)
        for place in compared if root else ():
            update = body.get(root.operands[place])
            if update is not None and update.opcode == "add":
                added = [body[name] for name in update.operands if name in body]
                return next((int(i.attributes) for i in added if i.opcode == "constant"), 1)
        return 1

    def instructions(self) -> list[tuple[str, Instruction, float]]:
        """(computation, instruction, runs) of everything that runs, computations inside fusions too."""
        return [
            (name, instruction, self.runs[name])
            for name, computation in self.computations.items()
            if self.runs.get(name)
            for instruction in computation.values()
        ]

    def pallas_kernels(self) -> dict[str, int]:
        """How often each Pallas kernel runs, by its name."""
        found: collections.Counter = collections.Counter()
        for _, instruction, runs in self.instructions():
            if instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes:
                found[re.sub(r"[.\d]*$", "", instruction.name)] += round(runs)
        return dict(found)

    def operands(self, computation: str, instruction: Instruction) -> list[tuple[Array, ...]]:
        """The arrays of each operand."""
        found = []
        for operand in instruction.operands:
            name, _, element = operand.partition("#")
            outputs = self.computations[computation][name].outputs
            found.append((outputs[int(element)],) if element else outputs)
        return found

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations whose instructions are parts of another one's: bodies of fusions, and of reductions."""
        return {
            called
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode not in ("while", "conditional", "call", "async-start")
            for called in instruction.called()
        }

    def _reached(self, start: str) -> list[str]:
        """A computation and all that it calls."""
        found, waiting = [], [start]
        while waiting:
            name = waiting.pop()
            if name in self.computations and name not in found:
                found.append(name)
                waiting += [c for i in self.computations[name].values() for c in i.called()]
        return found

    def _callers_first(self) -> list[str]:
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name in seen or name not in self.computations:
                return
            seen.add(name)
            for instruction in self.computations[name].values():
                for called in instruction.called():
                    visit(called)
            order.append(name)

        visit(self.entry)
        return order[::-1]


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a shape, e.g. "(f32[2,3]{1,0}, s32[])"."""
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
        if dtype in BYTES
    )


def _element(instruction: Instruction) -> int:
    """Which element of a tuple a get-tuple-element takes."""
    return int(re.match(r"index=(\d+)", instruction.attributes)[1])


def _instruction(line: str) -> Instruction:
    """Parses `[ROOT] %name = shape opcode(operands), attributes`.

    A constant's value and a parameter's number count as attributes.
    """
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, after = rest[len(opcode) + 1 : close], rest[close + 1 :].lstrip(", ")
    operands = () if opcode == "constant" else tuple(_OPERAND.findall(inside))
    name = left.removeprefix("ROOT ").lstrip("%")
    attributes = {"constant": inside, "parameter": f"{inside}, {after}"}.get(opcode, after)
    return Instruction(name, opcode, arrays(shape), operands, attributes, left.startswith("ROOT "))


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)
