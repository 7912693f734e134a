"""One of two processes that feed one global batch through `jax.distributed`; run by `test_two_hosts.py`.

    python two_hosts.py CACHE PORT INDEX

Prints, as JSON, for each global batch a digest of the rows on this process's devices, and a sum over all devices.
"""

import hashlib
import itertools
import json
import sys

import jax
import numpy as np
from toy_data import Noisy

from pretrain.core.batch import ArraySpec
from pretrain.data.loader import make_loader
from pretrain.data.training_data import TrainingData
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import batch_shardings, place_batch
from pretrain.train.pace import placed_ahead

OPTIONS = {"split": "train", "objective": Noisy(), "batch_size": 8, "sequence_length": 64, "seed": 0}
START, STEPS = 5, 6


def digest(batch: dict) -> str:
    arrays = {name: np.ascontiguousarray(batch[name], np.int32) for name in sorted(batch)}
    return hashlib.sha256(b"".join(name.encode() + array.tobytes() for name, array in arrays.items())).hexdigest()


def here(array: jax.Array) -> np.ndarray:
    """The rows that lie on this process's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def main(cache: str, port: str, index: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
    mesh = make_mesh(MeshConfig())
    data = TrainingData(
        lambda resume: make_loader(cache, process_index=jax.process_index(), process_count=2, resume=resume, **OPTIONS)
    )
    specs = {
        name: ArraySpec((8, 64), "int32", ("batch", "length"))
        for name in ("tokens", "segment_ids", "positions", "mask")
    }
    shardings = batch_shardings(specs, mesh)
    total = jax.jit(lambda batch: batch["tokens"].sum())
    digests, sums = [], []
    placed = placed_ahead(data.batches(START), lambda batch: place_batch(batch, shardings, 8), 2)
    for batch in itertools.islice(placed, STEPS):
        assert all(array.shape == (8, 64) and not array.is_fully_addressable for array in batch.values())
        digests.append(digest({name: here(array) for name, array in batch.items()}))
        sums.append(int(total(batch)))
    devices = [jax.process_count(), jax.device_count(), jax.local_device_count()]
    print(json.dumps({"devices": devices, "digests": digests, "sums": sums, "position": data.position(START + STEPS)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
