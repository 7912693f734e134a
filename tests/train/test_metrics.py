"""metrics.jsonl and TensorBoard's files: what is in them, and that a full disk delays them and loses nothing."""

import itertools
import json
import struct

import numpy as np
import pytest
from full_disk import OnFullDisk
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tiny import TINY_GIN

from pretrain.core.growing_file import GrowingFile
from pretrain.experiment import Experiment
from pretrain.train.events import read_events
from pretrain.train.metrics import MetricsLog, read_metrics


def events(folder) -> list[Event]:
    """TensorBoard's events of all files in a folder, the oldest first; checksums are checked."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            header, (length,) = data[:8], struct.unpack("<Q", data[:8])
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12]) == (masked_crc32c(header),)
            assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc32c(body),)
            found.append(Event.FromString(body))
            data = data[16 + length :]
    return found


def scalars(folder) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_rows_and_lists(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0, "grad_rms/x": [0.5, float("inf")], "broken": float("nan")})
    log.close()
    row = {"step": 1, "loss": 1.0, "grad_rms/x": [0.5, None], "broken": None}
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]
    assert scalars(tmp_path / "tensorboard") == [(1, "loss", 1.0), (1, "grad_rms/x/layer_000", 0.5)]


def test_histograms(tmp_path):
    log = MetricsLog(tmp_path)
    log.write_histograms(3, {"params/x": np.array([3, 0, 4]), "none": np.zeros(3, int)}, np.array([0.0, 0.1, 2.0]))
    log.close()
    first, second = events(tmp_path / "tensorboard")[-1].summary.value
    assert (first.tag, first.histo.num, first.histo.min, first.histo.max) == ("params/x", 7, 0, 2)
    assert (first.histo.sum, first.histo.sum_squares) == (8, 16)
    assert list(first.histo.bucket) == [3, 0, 4] and list(first.histo.bucket_limit) == [0, 0.1, 2]
    assert second.histo.num == 0


def test_steps_done_again_are_written_once(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": float(step)})
    log.rewind(3)
    log.write(4, {"loss": 40.0})
    log.close()
    again = MetricsLog(tmp_path, 4)
    again.write(5, {"loss": 50.0})
    again.close()
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 40, 50]
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert starts == [1, 4, 5], "TensorBoard hides what it has of these steps and later ones"


def test_a_growing_file_waits_for_room(tmp_path):
    file = GrowingFile(tmp_path / "new" / "file", b"begin ")
    parts = [bytes([65 + number]) * 250 for number in range(6)]
    file.append(parts[0])
    with OnFullDisk():
        for part in parts[1:4]:
            try:
                file.append(part)
            except OSError:
                assert file.waiting
        with pytest.raises(OSError, match="too large"):
            file.flush()
    for part in parts[4:]:
        file.append(part)
    file.flush()
    assert not file.waiting and (tmp_path / "new" / "file").read_bytes() == b"begin " + b"".join(parts)
    file.close()


@pytest.mark.filterwarnings("ignore")  # of jax, that its cache of programs cannot be written
def test_training_goes_on_over_a_full_disk(tiny_cache, tmp_path, capsys):
    """Every row is there in the end, the saves that failed are alarms, and the run's last one is whole."""
    bindings = (f"Experiment.data='{tiny_cache}'", "LOG_EVERY=1", "CHECKPOINT_EVERY=5", "Checkpointing.patience=0.1")
    trainer = Experiment.from_gin([str(TINY_GIN)], bindings, workdir=str(tmp_path)).trainer()
    batches, full = trainer.data.batches, OnFullDisk()

    def with_trouble(start):
        for number, batch in zip(itertools.count(start), batches(start), strict=False):
            if number == 8:
                full.__enter__()
            if number == 25:
                full.__exit__()
            yield batch

    trainer.data.batches = with_trouble
    trainer.run()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 41))
    losses = [step for step, tag, _ in scalars(tmp_path / "tensorboard") if tag == "loss"]
    assert losses == list(range(1, 41))
    said = capsys.readouterr().err
    assert said.count("ALARM: metrics cannot be written") == 1 and "ALARM: step 10 is not saved" in said
    kinds = {event["kind"] for event in read_events(tmp_path)}
    assert kinds <= {"checkpoint_alarm"}
    manifest = json.loads((tmp_path / "checkpoints" / "40" / "manifest.json").read_text())
    assert manifest["step"] == 40
