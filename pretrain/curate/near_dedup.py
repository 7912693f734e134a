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
from pretrain.core.fields import check_fields
from pretrain.curate import minhash
from pretrain.curate.documents import text_bytes
from pretrain.curate.hashing import KEY_BYTES, from_binary, row_keys, to_binary
from pretrain.curate.simplify import simplify
from pretrain.curate.stages import DECISIONS, rejections


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class NearDedup:
    """Keyed stage that keeps the best document of each cluster of near duplicates.

    Rejected documents get the kept one as `duplicate_of` and as value the estimated Jaccard similarity to it, which is
    below the threshold where only a chain of near duplicates joins the two.

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
        chains: whether a cluster is all that chains of near duplicates join (connected components). False rejects a
            document only if it is a near duplicate of one that is kept, so that a cluster may keep several.
        seed: chooses the hash functions.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    min_similarity: float = 0.75
    verify_bits: int = 384
    score: str | None = None
    chains: bool = True
    seed: int = 1
    name: str = "near_dedup"

    def __post_init__(self):
        check_fields(self)
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
        bits_DB = minhash.verifying_bits(signatures_DK[:, self.bands * self.rows :])
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
        """The documents of a band's bucket that verify with a better one (by score, then id), and those better ones.

        In each bucket the best document is compared with all others and takes those that verify; of what is left the
        best is compared, and so on: one comparison a document where all are alike.
        """
        keys = from_binary(evidence["key"]).view(f"V{KEY_BYTES}")[:, 0]
        bucket = np.cumsum(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        score = evidence["score"].to_numpy()
        order = np.lexsort((np.arange(len(keys)), -score, bucket))  # rows come sorted by id within a bucket
        row, best = self._compare(bucket, order, evidence["bits"])
        leaders = np.unique(best)
        columns = evidence.select(["id", "score", "bits"]).take(pa.array(np.concatenate([row, leaders])))
        better = pa.concat_arrays([*evidence["id"].take(pa.array(best)).chunks, pa.nulls(len(leaders), pa.string())])
        return columns.append_column("better", better)

    def _compare(self, bucket: np.ndarray, order: np.ndarray, bits: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (row, better row) that verify; `order` has the rows by bucket, the best of each bucket first."""
        rows = [np.zeros(0, np.int64)]
        bests = [np.zeros(0, np.int64)]
        while len(order):
            is_best = np.append(True, bucket[order][1:] != bucket[order][:-1])
            best = order[np.maximum.accumulate(np.where(is_best, np.arange(len(order)), 0))]
            order, best = order[~is_best], best[~is_best]
            is_near = similarity(bits, order, best) >= self.accepted_similarity
            rows.append(order[is_near])
            bests.append(best[is_near])
            order = order[~is_near]
        return np.concatenate(rows), np.concatenate(bests)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects all but the best of each connected component, or all that verify with a better one of it."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        is_link = groups["better"].is_valid().to_numpy(zero_copy_only=False)
        node = groups["id"].combine_chunks().dictionary_encode()
        ids, node = node.dictionary, node.indices.to_numpy()
        first = np.unique(node, return_index=True)[1]
        documents = groups.take(pa.array(first))
        order = pc.sort_indices(documents, [("score", "descending"), ("id", "ascending")]).to_numpy().astype(int)
        better = pc.index_in(groups["better"].filter(pa.array(is_link)), value_set=ids).to_numpy()
        kept = best_of_components(node[is_link], better, order)
        rejected = np.flatnonzero(kept != np.arange(len(ids)))
        kept = kept[rejected]
        if not self.chains:
            component = np.arange(len(ids))
            component[rejected] = kept
            order = order[np.argsort(component[order], kind="stable")]
            rejected, kept = self._compare(component, order, documents["bits"])
        values = pa.array(similarity(documents["bits"], rejected, kept))
        rejected, kept = ids.take(pa.array(rejected)), ids.take(pa.array(kept))
        return rejections(rejected, "near_duplicate", values, self.accepted_similarity, kept)


def similarity(bits: pa.ChunkedArray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard similarity of pairs of rows, estimated from the share of equal bits, of which half agree by chance."""
    bits_NB = from_binary(bits)
    words_NW = np.ascontiguousarray(bits_NB).view(np.uint64)
    differing = np.bitwise_count(words_NW[one] ^ words_NW[other]).sum(axis=1, dtype=np.int64)
    return np.maximum(0.0, 1 - 2 * differing / (8 * bits_NB.shape[1]))


def best_of_components(one: np.ndarray, other: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each node the first, by `order`, of those that links join it with, itself among them.

    Nodes take over the best label of their neighbours, and labels are followed to their ends, until links join equals:
    a few rounds, as many as the logarithm of the longest chain.

    Args:
        one: a node of each link, in 0 … N - 1.
        other: the other node of each link.
        order: all nodes, best first, [N].
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    one, other = rank[one], rank[other]
    label = np.arange(len(order))
    while (label[one] != label[other]).any():
        best = np.minimum(label[one], label[other])
        for end in (one, other):
            np.minimum.at(label, label[end], best)
        while (label[label] != label).any():
            label = label[label]
    return order[label[rank]]
