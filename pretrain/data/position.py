"""Where in the data a run stands: what a batch depends on, as a fingerprint, and the phases of its mixture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from pretrain.core import storage
from pretrain.core.errors import UserError
from pretrain.data.mixing import Phase


class _State(TypedDict):
    """What `Position.state` gives and `resumed` takes."""

    step: int
    fingerprint: str
    base: str
    phases: list[Phase]
    asked: list[Phase]


@dataclass(frozen=True)
class Position:
    """What the batches of a loader depend on.

    Attributes:
        base: fingerprint of everything but the mixture.
        phases: the phases in force, by the row at which each begins.
        asked: the phases as configured; they differ from `phases` once a run was resumed with another mixture.
    """

    base: str
    phases: list[Phase]
    asked: list[Phase]

    @property
    def fingerprint(self) -> str:
        return storage.fingerprint([self.base, [phase.to_json() for phase in self.phases]])

    def state(self, step: int) -> dict:
        """A few hundred bytes of JSON from which `resumed` continues."""
        phases = {name: [phase.to_json() for phase in getattr(self, name)] for name in ("phases", "asked")}
        return {"step": step, "fingerprint": self.fingerprint, "base": self.base, **phases}

    def resumed(self, state: Mapping | None, batch_size: int) -> "Position":
        """This position as the continuation of an earlier one.

        Where the mixture is another one now, the old phases hold up to the state's step and the new ones from there.

        Raises:
            UserError: anything but the mixture differs.
        """
        if not state:
            return self
        storage.typed(state, _State, "the data position of a run")
        if state["base"] != self.base:
            raise UserError(
                f"the position of step {state['step']} belongs to other data (the cache, objective, lengths, batch "
                "size, seed, or the mixture's epochs or stop changed): restore what it was, or use another --workdir"
            )
        past, asked = ([Phase(p["row"], p["by"], p["shares"]) for p in state[name]] for name in ("phases", "asked"))
        if asked == self.asked:
            return Position(self.base, past, asked)
        row = state["step"] * batch_size
        now = [phase for phase in self.asked if phase.row <= row][-1]
        phases = [phase for phase in past if phase.row < row] + [Phase(row, now.by, now.shares)]
        return Position(self.base, phases + [phase for phase in self.asked if phase.row > row], self.asked)
