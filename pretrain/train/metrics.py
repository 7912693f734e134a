"""Metrics of a run: `metrics.jsonl`, one object a logged step and never a step twice, and TensorBoard events."""

import json
import os
import tempfile
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
        self._mine = processes.is_first()
        if not self._mine:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        self._remote = is_remote(self._path)
        self._lines = [json.dumps(row) for row in read_metrics(self._path) if row["step"] <= resume_step]
        write_text(self._path, "".join(line + "\n" for line in self._lines))
        self._file = None if self._remote else open(os.fspath(self._path), "a", encoding="utf-8")  # noqa: SIM115
        self._board_folder = Path(workdir) / "tensorboard"
        self._local_board = tempfile.mkdtemp() if self._remote else os.fspath(self._board_folder)
        self._board = SummaryWriter(self._local_board, purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the row of a step; values are Python floats, not-a-number as null."""
        if not self._mine:
            return
        row = {"step": step, **{name: value if _finite(value) else None for name, value in values.items()}}
        line = json.dumps(row)
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line + "\n")
            self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

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

    def close(self) -> None:
        """Flushes and closes."""
        if not self._mine:
            return
        self.flush()
        self._board.close()
        if self._file is not None:
            self._file.close()


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
