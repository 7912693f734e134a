"""Near deduplication: MinHash signatures, locality-sensitive hashing, verified pairs, connected components.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman and Ullman, "Mining
of massive datasets", chapter 3. Documents that agree in all rows of a band are candidates: with 14 bands of 8 rows a
pair of similarity .85 is one with probability .99, a pair of .5 with .05. Candidates are verified by other positions
of the signature, one bit of each (Li and König, "b-Bit minwise hashing", 2010), which is what evidence holds: 48 bytes.
"""

import dataclasses
import json

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import check
from pretrain.curate import minhash
from pretrain.curate.documents import text_bytes
from pretrain.curate.hashing import KEY_BYTES, from_binary, row_keys, to_binary
from pretrain.curate.simplify import simplify
from pretrain.curate.stages import DECISIONS, rejections

LINKS = pa.schema({"id": pa.string(), "better": pa.string(), "score": pa.float64(), "similarity": pa.float64()})


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class NearDedup:
    """Keyed stage that keeps the best document of each cluster of near duplicates.

    Rejected documents get the kept one as `duplicate_of` and as value the estimated Jaccard similarity to it, or
    where the two were not compared, to the most similar member of the cluster.

    Attributes:
        ngram: words in an n-gram; documents with fewer words are one n-gram.
        bands: bands of the signature; one that agrees in all rows makes two documents candidates.
        rows: positions of the signature in a band.
        min_similarity: Jaccard similarity of near duplicates. A pair is accepted when its estimate is two standard
            errors above, so that few accepted pairs lie below.
        verify_bits: positions of the signature that estimates are made from, a multiple of 64; memory is an eighth
            of it in bytes a document.
        score: number in the metadata by which the best is chosen (higher is better; documents without it come last);
            None: the longest in bytes. Of equals the one with the smallest id.
        seed: chooses the hash functions.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    min_similarity: float = 0.75
    verify_bits: int = 384
    score: str | None = None
    seed: int = 1
    name: str = "near_dedup"

    def __post_init__(self):
        for attribute in ("ngram", "bands", "rows"):
            check(getattr(self, attribute) >= 1, f"NearDedup.{attribute} must be at least 1")
        check(0 <= self.min_similarity < 1, f"NearDedup.min_similarity must lie in 0 … 1, not {self.min_similarity}")
        is_whole = self.verify_bits >= 64 and self.verify_bits % 64 == 0
        check(is_whole, f"NearDedup.verify_bits must be a multiple of 64, not {self.verify_bits}")

    @property
    def accepted_similarity(self) -> float:
        """The smallest estimate that is accepted: two standard errors above `min_similarity`."""
        agreement = (1 + self.min_similarity) / 2  # of single bits, which agree by chance half the time
        margin = 4 * np.sqrt(agreement * (1 - agreement) / self.verify_bits)
        return min(1.0, self.min_similarity + margin)

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """A row a document and band: key of the band, score, and the bits that verify."""
        texts = simplify(documents["text"].to_pylist(), digits=False)
        positions = self.bands * self.rows + self.verify_bits
        signatures_DK = minhash.signatures(texts, self.ngram, positions, self.seed)
        has_words = signatures_DK[:, 0] != minhash.EMPTY
        signatures_DK = signatures_DK[has_words]
        bands_DBR = signatures_DK[:, : self.bands * self.rows].reshape(-1, self.bands, self.rows)
        keys = [row_keys(bands_DBR[:, band], band) for band in range(self.bands)]
        bits_DB = np.packbits((signatures_DK[:, self.bands * self.rows :] & np.uint64(1)).astype(bool), axis=1)
        row = pa.array(np.tile(np.flatnonzero(has_words), self.bands))
        return pa.table(
            {
                "key": to_binary(np.concatenate(keys)),
                "id": documents["id"].take(row),
                "score": pa.array(self._scores(documents)).take(row),
                "bits": to_binary(np.tile(bits_DB, (self.bands, 1))),
            }
        )

    def _scores(self, documents: pa.RecordBatch) -> np.ndarray:
        if self.score is None:
            return text_bytes(documents).to_numpy().astype(np.float64)
        values = [json.loads(metadata).get(self.score) for metadata in documents["metadata"].to_pylist()]
        given = [float(value) if isinstance(value, (int, float)) else -np.inf for value in values]
        return np.nan_to_num(np.array(given, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)

    def group(self, evidence: pa.Table) -> pa.Table:
        """Links between documents of a band's bucket and a better one (by score, then id) that verify.

        In each bucket the best document is compared with all others and takes those that verify; of what is left the
        best is compared, and so on: one comparison a document where all are alike.
        """
        keys = from_binary(evidence["key"]).view(f"V{KEY_BYTES}")[:, 0]
        is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        bucket = np.cumsum(is_new)
        score = evidence["score"].to_numpy()
        bits_NW = np.ascontiguousarray(from_binary(evidence["bits"])).view(np.uint64)
        row = np.lexsort((np.arange(len(keys)), -score, bucket))  # rows come sorted by id within a bucket
        links = []
        while len(row):
            is_best = np.append(True, bucket[row][1:] != bucket[row][:-1])
            best = row[np.maximum.accumulate(np.where(is_best, np.arange(len(row)), 0))]
            row, best = row[~is_best], best[~is_best]
            differing = np.bitwise_count(bits_NW[row] ^ bits_NW[best]).sum(axis=1, dtype=np.int64)
            similarity = 1 - 2 * differing / self.verify_bits
            is_linked = similarity >= self.accepted_similarity
            links.append((row[is_linked], best[is_linked], similarity[is_linked]))
            row = row[~is_linked]
        if not links:
            return LINKS.empty_table()
        row, best, similarity = (np.concatenate(part) for part in zip(*links, strict=True))
        columns = [evidence["id"].take(pa.array(row)), evidence["id"].take(pa.array(best)), score[best], similarity]
        return pa.table(columns, schema=LINKS)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects all but the best of each connected component of links."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        number = groups.num_rows
        nodes = pa.chunked_array([*groups["id"].chunks, *groups["better"].chunks]).combine_chunks().dictionary_encode()
        ids, node = nodes.dictionary, nodes.indices.to_numpy()
        score = np.full(len(ids), -np.inf)  # of those that are better than another; no other can be the best
        is_candidate = np.zeros(len(ids), bool)
        score[node[number:]], is_candidate[node[number:]] = groups["score"].to_numpy(), True
        table = pa.table({"candidate": is_candidate, "score": score, "id": ids})
        order = pc.sort_indices(table, [("candidate", "descending"), ("score", "descending"), ("id", "ascending")])
        kept = best_of_components(node[:number], node[number:], order.to_numpy())
        # Each link from both of its ends; the one to the kept document first, then by similarity.
        one, other = node, np.roll(node, number)
        similarity = np.tile(groups["similarity"].to_numpy(), 2)
        link = np.lexsort((-similarity, kept[one] != other, one))
        link = link[np.append(True, one[link][1:] != one[link][:-1])]
        link = link[kept[one[link]] != one[link]]
        rejected, kept = pa.array(one[link]), pa.array(kept[one[link]])
        values = pa.array(similarity[link])
        return rejections(ids.take(rejected), "near_duplicate", values, self.accepted_similarity, ids.take(kept))


def best_of_components(one: np.ndarray, other: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each node the first, by `order`, of those that links join it with, itself among them.

    Args:
        one: a node of each link, in 0 … N - 1.
        other: the other node of each link.
        order: all nodes, best first, [N].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(order)
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(size, size))
    count, component = connected_components(links.tocsr(), directed=False)
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    best = np.full(count, size)
    np.minimum.at(best, component, rank)
    return order[best[component]]
