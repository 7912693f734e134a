"""Near-duplicate pictures by a perceptual hash: resized, recompressed and slightly recoloured copies of one another.

The hash is 64 bits of which neighbour is brighter in a picture of 8 x 9 grey pixels (dHash, Krawetz 2013). Two pictures
are alike where at most `distance` bits differ. The hash is cut into distance + 1 bands; two hashes that are alike agree
in one of them, so only pictures that share a band are compared.
"""

import dataclasses
import itertools

import gin
import numpy as np
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.images import BrokenImage, decode, resize
from pretrain.curate.documents import arrays_of
from pretrain.curate.hashing import KEY_BYTES
from pretrain.curate.near_dedup import best_of_components
from pretrain.curate.stages import DECISIONS, rejections

EVIDENCE = pa.schema({"key": pa.binary(KEY_BYTES), "id": pa.string(), "hash": pa.uint64()})
GROUPS = pa.schema({"id": pa.string(), "like": pa.string(), "bits": pa.int64()})


def difference_hash(data: bytes) -> int:
    """64 bits of a picture; uniform ones all have 0.

    Raises:
        BrokenImage: it cannot be decoded.
    """
    pixels = resize(decode(data, channels=1), 8, 9)[..., 0].astype(np.int64)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ImageDedup:
    """Keyed stage that rejects all but one (that with the smallest id) of pictures that are alike.

    Likeness is carried on: of a chain of pictures, each like the next, one stays. Documents without a picture, or with
    a broken or uniform one, which says nothing, are not compared.

    Attributes:
        distance: bits of the hash that may differ.
        array: the name of the picture.
    """

    distance: int = 3
    array: str = "image"
    name: str = "image_dedup"

    def __post_init__(self):
        check_fields(self)
        check(0 <= self.distance <= 15, f"ImageDedup.distance must be from 0 to 15, not {self.distance}")

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """A row for each band of each picture's hash."""
        rows = []
        for id_, arrays in zip(documents["id"].to_pylist(), arrays_of(documents), strict=True):
            try:
                hash_ = difference_hash(arrays[self.array]) if self.array in arrays else 0
            except BrokenImage:
                hash_ = 0
            rows += [(key, id_, hash_) for key in self._bands(hash_)] if hash_ else []
        columns = zip(*rows, strict=True) if rows else [()] * len(EVIDENCE)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, EVIDENCE, strict=True)]
        return pa.table(arrays, schema=EVIDENCE)

    def _bands(self, hash_: int) -> list[bytes]:
        cuts = np.linspace(0, 64, self.distance + 2).astype(int).tolist()
        return [
            bytes([band]) + bytes(KEY_BYTES - 9) + ((hash_ >> low) & ((1 << (high - low)) - 1)).to_bytes(8, "big")
            for band, (low, high) in enumerate(itertools.pairwise(cuts))
        ]

    def group(self, evidence: pa.Table) -> pa.Table:
        """Pairs of pictures that are alike, among those that share a band; of equal hashes, each with the first."""
        keys, all_hashes = evidence["key"].to_pylist(), evidence["hash"].to_numpy()
        ends = np.flatnonzero([*(a != b for a, b in zip(keys[1:], keys[:-1], strict=True)), True]) + 1 if keys else []
        first, second, bits = [], [], []
        for start, end in zip([0, *ends], ends, strict=False):
            hashes, rows, places = np.unique(all_hashes[start:end], return_index=True, return_inverse=True)
            equal = np.flatnonzero(rows[places] != np.arange(end - start))
            first += (start + rows[places[equal]]).tolist()
            second += (start + equal).tolist()
            bits += [0] * len(equal)
            for place in range(1, len(hashes)):
                differing = np.bitwise_count(hashes[:place] ^ hashes[place])
                alike = np.flatnonzero(differing <= self.distance)
                first += (start + rows[alike]).tolist()
                second += [start + rows[place]] * len(alike)
                bits += differing[alike].tolist()
        pairs = [evidence["id"].take(pa.array(rows, pa.int64())) for rows in (second, first)]
        return pa.table([*pairs, pa.array(bits, pa.int64())], schema=GROUPS)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects all of a chain but the first id; the value is the fewest bits in which one differs from another."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        ids, places = np.unique([*groups["id"].to_pylist(), *groups["like"].to_pylist()], return_inverse=True)
        a, b = places.reshape(2, -1)
        count = len(ids)
        kept = best_of_components(a, b, np.arange(count))  # ids are sorted
        fewest = np.full(count, 64)
        for side in (a, b):
            np.minimum.at(fewest, side, groups["bits"].to_numpy())
        rejected = np.flatnonzero(kept != np.arange(count))
        to = pa.array(ids[kept[rejected]].tolist(), pa.string())
        values = pa.array(fewest[rejected], pa.float64())
        return rejections(pa.array(ids[rejected].tolist(), pa.string()), "like_picture", values, self.distance, to)
