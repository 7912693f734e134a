"""Metrics of a run: `metrics.jsonl`, one object a logged step and never a step twice, and TensorBoard's files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.core import processes
from pretrain.core.console import say
from pretrain.core.growing_file import GrowingFile
from pretrain.core.storage import Path
from pretrain.train.board import Board


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line that is none, such as one cut off by a crash, is left out."""
    path = Path(path)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class MetricsLog:
    """Writes the metrics of one run; of its processes the first one does, for all.

    Opening it drops rows after `resume_step`: the steps done again write theirs anew. A full disk is said once; what it
    refuses waits, and training goes on.

    Args:
        workdir: holds `metrics.jsonl` and `tensorboard/`.
        resume_step: last step whose row is kept.
    """

    def __init__(self, workdir: Path | str, resume_step: int = 0):
        self._mine, self._workdir, self._alarmed = processes.is_first(), Path(workdir), False
        if self._mine:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        path = self._workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row["step"] <= resume_step]
        self._file = GrowingFile(path, b"".join(map(_line, rows)))
        self._board = Board(self._workdir / "tensorboard", resume_step + 1)

    def write(self, step: int, values: Mapping[str, float | Sequence[float]]) -> None:
        """Adds the row of a step; values are Python floats, or lists of them by layer; not-a-number becomes null."""
        if not self._mine:
            return
        row = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        shown = {name: value for name, value in _scalars(values).items() if math.isfinite(value)}
        self._attempt(lambda: self._file.append(_line(row)))
        self._attempt(lambda: self._board.scalars(step, shown))

    def write_histograms(self, step: int, counts: Mapping[str, np.ndarray], bounds: np.ndarray) -> None:
        """Adds histograms to TensorBoard; see `Board.histograms`."""
        if self._mine:
            self._attempt(lambda: self._board.histograms(step, counts, bounds))

    def flush(self) -> None:
        """Makes what was written durable; called before each checkpoint.

        Raises:
            OSError: the disk refuses it.
        """
        if self._mine:
            self._file.flush()
            self._board.file.flush()
            self._alarmed = False

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, as on a resumed run: the steps done again write theirs anew."""
        self.close()
        if self._mine:
            self._open(step)

    def close(self) -> None:
        """Flushes and closes."""
        if self._mine:
            self._attempt(self.flush)
            self._file.close()
            self._board.file.close()

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if not self._alarmed:
                say(f"train: ALARM: metrics cannot be written to {self._workdir} and wait in memory: {error}")
            self._alarmed = True


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _plain(value: float | Sequence[float]) -> Any:
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return [_plain(each) for each in value]


def _scalars(values: Mapping[str, float | Sequence[float]]) -> dict[str, float]:
    """Lists as one number a layer, by names of their own."""
    found = {}
    for name, value in values.items():
        if isinstance(value, float | int):
            found[name] = value
        else:
            found |= {f"{name}/layer_{layer:03d}": each for layer, each in enumerate(value)}
    return found
