"""The training batches of a run across restarts: they go on from a checkpoint's position, and a new mixture is said.

A position counts steps trained, never batches prepared or sent ahead, so a restart repeats and loses nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import numpy as np

from pretrain.core.console import say
from pretrain.core.storage import Path, read_json, write_json
from pretrain.data.assembly import Arrays
from pretrain.data.corpus import document_origins
from pretrain.data.loader import Loader


class Record(TypedDict):
    """What `data.json` holds at least."""

    position: dict[str, Any]


def recorded_position(record: Path) -> Mapping | None:
    """The position in what training read last, from the record that `TrainingData` keeps; None where there is none."""
    return read_json(record, Record)["position"] if record.exists() else None


class TrainingData:
    """Batches from a loader that is opened anew where a checkpoint stands in another plan.

    Args:
        open_loader: makes the run's loader; its argument is the `resume` of `make_loader`.
        record: where to keep, as JSON, what is read: plan, phases of the mixture, counts. None keeps nothing.
        corpus_dir: the curated corpus of the cache, to name documents by id and origin; None for their numbers.

    Attributes:
        loader: the one in use.
    """

    def __init__(
        self,
        open_loader: Callable[[Mapping | None], Loader],
        record: Path | None = None,
        corpus_dir: Path | None = None,
    ):
        self._open, self._record, self._corpus_dir = open_loader, record, corpus_dir
        self.loader = open_loader(None)

    def batches(self, start: int) -> Iterator[Arrays]:
        """This host's rows of the batches from step `start` on."""
        if self._record is not None:
            write_json(self._record, {"position": self.position(start), **self.loader.info})
        return (batch for _, batch in self.loader.iterate(start))

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps; see `Loader.state`."""
        return self.loader.state(step)

    def documents(self, batch: int) -> list[str]:
        """What stands in the rows that all hosts together have of a batch: ids and origins, or numbers of documents."""
        numbers = np.unique(self.loader.documents(self.loader.contents(batch, all_hosts=True)))
        names = document_origins(self._corpus_dir, numbers) if self._corpus_dir is not None else {}
        return [names.get(number, str(number)) for number in numbers.tolist()]

    def sources(self, batch: int) -> list[str | None]:
        """The source of each row of a batch, over all hosts; None past the end of the data."""
        names = self.loader.info["sources"]
        rows = self.loader.contents(batch, all_hosts=True).row_source
        return [names[source] if source >= 0 else None for source in rows.tolist()]

    def resume(self, position: Mapping) -> None:
        """Goes on from a checkpoint's position; with another mixture than before, a new plan begins there.

        Raises:
            UserError: the position is one in other data.
        """
        step = position["step"]
        if position == self.position(step):
            return
        self.loader = self._open(position)
        if self.loader.fingerprint != position["fingerprint"]:
            row = step * self.loader.batch_size
            phase = [phase for phase in self.loader.info["phases"] if phase["row"] <= row][-1]
            shares = ", ".join(f"{source} {100 * share:.3g} %" for source, share in phase["shares"].items())
            say(
                f"data: another mixture from step {step} on, by {phase['by']}: {shares} "
                f"(plan {self.loader.fingerprint} follows {position['fingerprint']})"
            )
