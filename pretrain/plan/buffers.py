"""The largest buffers of a compiled step and where they come from, from the compiler's own buffer assignment."""

import dataclasses
import re

from pretrain.plan.hlo import Program

_VALUE = re.compile(r"^ value: <\d+ (\S+?)(?:\{[\d,]*\})? @\d+> \(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])", re.M)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array in HBM.

    Attributes:
        bytes: on one chip, padding included.
        shape: of one chip's part, e.g. "bf16[32,2,8192,4096]".
        kind: "argument" or "temporary".
        origin: the operation of the traced function that makes it, or the argument's name.
        source: file and line of the project's code that asked for it, "" where not known.
    """

    bytes: int
    shape: str
    kind: str
    origin: str
    source: str


def largest_buffers(assignment: str, text: str, program: Program, count: int = 12) -> list[Buffer]:
    """The largest arguments and temporaries; of those that take turns in one place, the largest alone.

    Args:
        assignment: text of XLA's buffer assignment, as `xla_dump_to` writes it.
        text: text of the compiled program.
        program: the same, read.
        count: how many.
    """
    instructions = {i.name: i for computation in program.computations.values() for i in computation.values()}
    sources = _Sources(text)
    buffers = []
    for allocation in re.split(r"^allocation ", assignment.partition("Total bytes")[0], flags=re.M)[1:]:
        head = allocation.partition("\n")[0]
        is_argument = "parameter" in head
        if (not is_argument and "preallocated-temp" not in head) or "color" in head:
            continue
        taken: list[tuple[int, int]] = []
        values = [(m[1], int(m[2]), int(m[3]), m[4]) for m in _VALUE.finditer(allocation)]
        for name, size, offset, shape in sorted(values, key=lambda value: -value[1])[:400]:
            if any(offset < end and start < offset + size for start, end in taken):
                continue
            taken.append((offset, offset + size))
            made_by = instructions.get(name)
            origin = made_by.op_name if made_by else ""
            kind = "argument" if is_argument else "temporary"
            buffers.append(Buffer(size, shape, kind, origin or name, sources.of(made_by.attributes if made_by else "")))
    return sorted(buffers, key=lambda buffer: -buffer.bytes)[:count]


class _Sources:
    """The tables of files, lines and call stacks at the head of a program's text."""

    def __init__(self, text: str):
        head = text[: text.find("\n%")]
        self.files = dict(re.findall(r'^(\d+) "([^"]*\.py)"$', head, flags=re.M))
        locations = re.findall(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", head, flags=re.M)
        self.locations = {key: (file, line) for key, file, line in locations}
        frames = re.findall(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", head, flags=re.M)
        self.frames = {key: (location, parent) for key, location, parent in frames}

    def of(self, attributes: str) -> str:
        """The innermost frame in this package of an instruction's metadata."""
        found = re.search(r"stack_frame_id=(\d+)", attributes)
        frame = found[1] if found else ""
        for _ in range(len(self.frames)):
            location, parent = self.frames.get(frame, ("", ""))
            file, line = self.locations.get(location, ("", ""))
            path = self.files.get(file, "")
            if "/pretrain/" in path and "site-packages" not in path.rpartition("/pretrain/")[2]:
                return f"{path.rpartition('/pretrain/')[2]}:{line}"
            if not location or parent == frame:
                break
            frame = parent
        return ""
