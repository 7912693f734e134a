"""What a run costs: chips, hours, money, energy and carbon, from a table that the user edits.

    pretrain plan --compute=1e22 --topology=v5p:4x4x4 --gin.Costs.price="{'v5p': 2.1}" --gin.Costs.kg_co2_per_kwh=0.05

Prices are list prices on demand and change often; power is a chip's share of its host at load. Both are a start only.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import gin

from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.train.hardware import PEAK_FLOPS

# name on the command line: (name in PEAK_FLOPS, US dollars a chip-hour, watts a chip with its share of the host)
CHIPS = {
    "v4": ("TPU v4", 3.22, 350.0),
    "v5e": ("TPU v5e", 1.20, 250.0),
    "v5p": ("TPU v5p", 4.20, 600.0),
    "v6e": ("TPU v6e", 2.70, 450.0),
    "a100": ("NVIDIA A100", 3.70, 600.0),
    "h100": ("NVIDIA H100", 6.90, 1000.0),
    "h200": ("NVIDIA H200", 7.90, 1000.0),
    "b200": ("NVIDIA B200", 11.00, 1600.0),
}
HOURS_A_DAY = 24


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Costs:
    """Figures to reckon with.

    Attributes:
        price: US dollars a chip-hour by chip, over those of the table.
        watts: power of a chip with its share of the host, by chip, over those of the table.
        facility: power of the building over that of its computers (PUE).
        kg_co2_per_kwh: of the grid.
        dollars_per_kwh: price of electricity when it is not in the chip's price; 0 leaves it out.
    """

    price: Mapping[str, float] = dataclasses.field(default_factory=dict)
    watts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facility: float = 1.1
    kg_co2_per_kwh: float = 0.35
    dollars_per_kwh: float = 0.0

    def __post_init__(self):
        check_fields(self)
        for name, table in (("price", self.price), ("watts", self.watts)):
            for chip, value in table.items():
                check(chip in CHIPS, f"Costs.{name}: no chip {chip!r}; there are {', '.join(CHIPS)}")
                check(value >= 0, f"Costs.{name}: {chip} must be >= 0, got {value}")
        check(self.facility >= 1, f"Costs.facility must be at least 1, got {self.facility}")

    def of(self, topology: "Topology", hours: float) -> dict[str, float]:
        """Chip-hours, dollars, kWh and kg of CO2 for a time on a topology."""
        chip_hours = topology.chips * hours
        _, price, watts = CHIPS[topology.chip]
        kwh = chip_hours * self.watts.get(topology.chip, watts) * self.facility / 1000
        dollars = chip_hours * self.price.get(topology.chip, price) + kwh * self.dollars_per_kwh
        return {"chip_hours": chip_hours, "dollars": dollars, "kwh": kwh, "kg_co2": kwh * self.kg_co2_per_kwh}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind: "v5p:4x4x4" is 64 of them, "h100:8" is 8."""

    chip: str
    chips: int

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s of all chips."""
        return PEAK_FLOPS[CHIPS[self.chip][0]] * self.chips

    def hours(self, flops: float, mfu: float) -> float:
        """Time that `flops` take."""
        return flops / (self.peak_flops * mfu) / 3600

    def flops(self, days: float, mfu: float) -> float:
        """What can be done in `days`."""
        return self.peak_flops * mfu * days * HOURS_A_DAY * 3600


def parse_topology(text: str) -> Topology:
    """A topology from "chip:AxBxC" or "chip:N".

    Raises:
        UserError: another form, or an unknown chip.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text.strip().lower())
    if match is None:
        raise UserError(f"--topology={text}: write CHIP:NUMBER or CHIP:AxBxC, e.g. v5p:4x4x4 or h100:8")
    chip, shape = match[1], [int(size) for size in match[2].split("x")]
    check(chip in CHIPS, f"--topology={text}: no chip {chip!r}; there are {', '.join(CHIPS)}")
    check(min(shape) > 0, f"--topology={text}: every size must be at least 1")
    return Topology(chip, math.prod(shape))
