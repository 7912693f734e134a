"""What a chip can do: memory, its bandwidth, and that of the networks between chips, for plans without the hardware.

Memory and peak speeds are the makers' figures (Google Cloud's TPU documentation, NVIDIA's datasheets); bandwidths of
links are those of "How to Scale Your Model" (Austin et al. 2025), in one direction, summed over a chip's links.
"""

import dataclasses
import re

from pretrain.core.errors import UserError, check
from pretrain.plan.costs import CHIPS
from pretrain.train.hardware import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        memory: bytes of HBM.
        memory_bandwidth: bytes/s of HBM.
        links: bytes/s a chip sends over all its links within a slice or NVLink domain.
        dimensions: of the torus of a slice; 1 for a switched network.
        slow_links: bytes/s a chip sends between slices or hosts.
        domain: chips joined by `links` on GPUs; None on TPUs, where a slice is.
    """

    memory: float
    memory_bandwidth: float
    links: float
    dimensions: int
    slow_links: float
    domain: int | None = None


SPECIFICATIONS = {
    "v4": Chip(32 * GIB, 1.2e12, 2.7e11, 3, 6.25e9),
    "v5e": Chip(16 * GIB, 8.1e11, 1.8e11, 2, 3.125e9),
    "v5p": Chip(95 * GIB, 2.765e12, 5.4e11, 3, 6.25e9),
    "v6e": Chip(32 * GIB, 1.6e12, 3.6e11, 2, 1.25e10),
    "a100": Chip(80e9, 2.0e12, 3.0e11, 1, 2.5e10, 8),
    "h100": Chip(80e9, 3.35e12, 4.5e11, 1, 5e10, 8),
    "h200": Chip(141e9, 4.8e12, 4.5e11, 1, 5e10, 8),
    "b200": Chip(180e9, 7.7e12, 9.0e11, 1, 5e10, 8),
}
IS_TPU = {"v4", "v5e", "v5p", "v6e"}


@dataclasses.dataclass(frozen=True)
class Pod:
    """Slices of one kind of chip.

    Attributes:
        kind: key of `SPECIFICATIONS`.
        shape: chips along each dimension of one slice.
        slices: how many, joined by the data-centre network.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What one chip can do."""
        return SPECIFICATIONS[self.kind]

    @property
    def slice_chips(self) -> int:
        """Chips of one slice."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slice_chips * self.slices

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s of one chip."""
        return PEAK_FLOPS[CHIPS[self.kind][0]]

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu can compile for it."""
        return self.kind in IS_TPU

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which of a slice's dimensions close to rings: all of whole cubes on v4 and v5p, 16 chips on v5e and v6e."""
        if self.chip.dimensions == 3:
            return (all(side % 4 == 0 for side in self.shape),) * 3
        return (*(side == 16 for side in self.shape), False)

    def __str__(self) -> str:
        text = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return text if self.slices == 1 else f"{self.slices} x {text}"

    def is_slow(self, devices: list[int]) -> bool:
        """Whether these devices (places in the mesh, slices outermost) span slices, or hosts of GPUs."""
        inside = self.chip.domain or self.slice_chips
        return len({device // inside for device in devices}) > 1

    def bandwidth(self, devices: list[int]) -> float:
        """Bytes/s that a chip sends in a collective over these devices (places in the mesh, slices outermost).

        A group within a slice uses as many of the torus's dimensions as its size has of theirs; one that spans slices
        goes at the speed of the network between them.
        """
        if self.is_slow(devices):
            return self.chip.slow_links
        inside = self.chip.domain or self.slice_chips
        if self.chip.dimensions == 1 or len(devices) >= inside:
            return self.chip.links
        used, size = 0, 1
        for side in sorted(self.shape, reverse=True):
            if size >= len(devices):
                break
            used, size = used + 1, size * side
        return self.chip.links * max(used, 1) / self.chip.dimensions


def parse_pod(text: str, slices: int = 1) -> Pod:
    """A pod from "v5p:4x4x4", as libtpu writes topologies, or "h100:8".

    Raises:
        UserError: another form, or a chip whose memory and links are not known.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text.strip().lower())
    if match is None:
        raise UserError(f"--topology={text}: write CHIP:AxBxC as libtpu does, e.g. v5p:4x4x4, or CHIP:NUMBER")
    kind, shape = match[1], tuple(int(size) for size in match[2].split("x"))
    check(kind in SPECIFICATIONS, f"--topology={text}: no chip {kind!r}; there are {', '.join(SPECIFICATIONS)}")
    check(min(shape) > 0 and slices > 0, f"--topology={text} --slices={slices}: every size must be at least 1")
    dimensions = SPECIFICATIONS[kind].dimensions
    check(
        kind not in IS_TPU or len(shape) == dimensions,
        f"--topology={text}: {kind} has slices of {dimensions} dimensions, e.g. {kind}:{'x'.join(['4'] * dimensions)}",
    )
    return Pod(kind, shape, slices)
