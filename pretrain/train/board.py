"""TensorBoard's files: one a process and rewind, in the TFRecord format, all values of a step in one record."""

import os
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import HistogramProto, Summary
from tensorboardX.record_writer import masked_crc32c

from pretrain.core.growing_file import GrowingFile
from pretrain.core.storage import Path


class Board:
    """A new file of events.

    Args:
        folder: `tensorboard/` of a workdir.
        first_step: TensorBoard hides what earlier files say of this step and later ones: it is done again.
    """

    def __init__(self, folder: Path, first_step: int):
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        start = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)),
        ]
        self.file = GrowingFile(folder / name, b"".join(map(_record, start)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers; may raise as `GrowingFile.append` does."""
        self._add(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def histograms(self, step: int, counts: Mapping[str, np.ndarray], bounds: np.ndarray) -> None:
        """Adds histograms; may raise as `GrowingFile.append` does.

        Args:
            step: of the run.
            counts: name -> how many values lie in each bin.
            bounds: upper bounds of the bins, rising.
        """
        shown = []
        for name, bins in counts.items():
            there = bounds[np.flatnonzero(bins)] if bins.any() else np.zeros(1)
            sums = {"num": bins.sum(), "sum": bins @ bounds, "sum_squares": bins @ np.square(bounds)}
            limits = {"min": there[0], "max": there[-1], **sums}
            histogram = HistogramProto(
                bucket_limit=bounds.tolist(), bucket=bins.tolist(), **{key: float(x) for key, x in limits.items()}
            )
            shown.append(Summary.Value(tag=name, histo=histogram))
        self._add(step, shown)

    def _add(self, step: int, values: list[Summary.Value]) -> None:
        self.file.append(_record(Event(wall_time=time.time(), step=step, summary=Summary(value=values))))


def _record(event: Event) -> bytes:
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    return header + struct.pack("<I", masked_crc32c(header)) + data + struct.pack("<I", masked_crc32c(data))
