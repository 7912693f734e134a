"""Metrics of a run: `metrics.jsonl`, one object a logged step and never a step twice, and TensorBoard events."""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX import SummaryWriter

from pretrain.core import processes
from pretrain.core.storage import Path, is_remote, write_bytes, write_text


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

    Opening it drops rows after `resume_step`: the steps done again write theirs anew. On a local disk lines are
    appended as they come; an object store has no append, so there the file is written whole at each `flush`.

    Args:
        workdir: holds `metrics.jsonl` and `tensorboard/`.
        resume_step: last step whose row is kept.
    """

    def __init__(self, workdir: Path | str, resume_step: int = 0):
        self._mine, self._workdir = processes.is_first(), Path(workdir)
        if self._mine:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        self._path = self._workdir / "metrics.jsonl"
        self._remote = is_remote(self._path)
        self._lines = [json.dumps(row) for row in read_metrics(self._path) if row["step"] <= resume_step]
        write_text(self._path, "".join(line + "\n" for line in self._lines))
        self._file = None if self._remote else open(os.fspath(self._path), "a", encoding="utf-8")  # noqa: SIM115
        self._board_folder = self._workdir / "tensorboard"
        self._local_board = tempfile.mkdtemp() if self._remote else os.fspath(self._board_folder)
        self._board = SummaryWriter(self._local_board, purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float | Sequence[float]]) -> None:
        """Adds the row of a step; values are Python floats, or lists of them by layer; not-a-number becomes null."""
        if not self._mine:
            return
        row = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        line = json.dumps(row)
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line + "\n")
            self._file.flush()
        for name, value in values.items():
            layers = {name: value} if isinstance(value, float | int) else _by_layer(name, value)
            for tag, number in layers.items():
                if math.isfinite(number):
                    self._board.add_scalar(tag, number, step)

    def flush(self) -> None:
        """Makes what was written durable; called before each checkpoint."""
        if not self._mine:
            return
        self._board.flush()
        if self._file is not None:
            os.fsync(self._file.fileno())
            return
        write_text(self._path, "".join(line + "\n" for line in self._lines))
        for name in os.listdir(self._local_board):
            with open(os.path.join(self._local_board, name), "rb") as file:
                write_bytes(self._board_folder / name, file.read())

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, as on a resumed run: the steps done again write theirs anew."""
        self.close()
        if self._mine:
            self._open(step)

    def close(self) -> None:
        """Flushes and closes."""
        if not self._mine:
            return
        self.flush()
        self._board.close()
        if self._file is not None:
            self._file.close()


def _plain(value: float | Sequence[float]) -> Any:
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return [_plain(each) for each in value]


def _by_layer(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}/layer_{layer:03d}": value for layer, value in enumerate(values)}
