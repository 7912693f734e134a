"""A byte n-gram language model in numpy: interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999).

An n-gram of at most 7 bytes fits a 64-bit integer with its length, so n-grams are counted by sorting integers and
looked up in a hash table of integers, whole batches at a time, without a tokenizer and for any script. KenLM would be
the library for this; its Python packages can only read models, not train them.
"""

import dataclasses
import functools

import numpy as np

MAX_ORDER = 7
DISCOUNT = 0.75
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, vol. 3, 6.4)
BOUNDARY = ord("\n")
# Lower case, digits 0, all white space one sign.
FOLD = np.arange(256, dtype=np.uint8)
FOLD[ord("A") : ord("Z") + 1] += 32
FOLD[ord("0") : ord("9") + 1] = ord("0")
FOLD[[9, 11, 12, 13, 32]] = 32


@dataclasses.dataclass(frozen=True, eq=False)
class ByteNgrams:
    """A trained model. N n-grams of two bytes or more; shorter ones are in tables of their own.

    Attributes:
        order: bytes in the longest n-gram.
        unigram_V: [256] float64, probability of each byte.
        keys_N: [N] uint64, the bytes of each n-gram with its length above them.
        probability_N: [N] float32, discounted relative frequency of the n-gram's last byte behind the others.
        backoff_N: [N] float32, the mass that its discounts leave to shorter contexts, when it is the context.
        unigram_backoff_V: [256] float32, the same for contexts of one byte.
    """

    order: int
    unigram_V: np.ndarray
    keys_N: np.ndarray
    probability_N: np.ndarray
    backoff_N: np.ndarray
    unigram_backoff_V: np.ndarray

    def __getstate__(self) -> dict:
        """The fields alone: a worker builds the hash table anew."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.uint64, np.ndarray, np.ndarray, np.ndarray]:
        """Slots of a hash table twice to four times as large as what it holds; of two in a slot the first stays."""
        bits = max(1, int(np.ceil(np.log2(max(1, len(self.keys_N))))) + 1)
        shift = np.uint64(64 - bits)
        slots, first = np.unique((self.keys_N * MULTIPLIER) >> shift, return_index=True)
        keys = np.zeros(1 << bits, np.uint64)
        probability, backoff = np.zeros(1 << bits, np.float32), np.ones(1 << bits, np.float32)
        keys[slots], probability[slots], backoff[slots] = (
            column[first] for column in (self.keys_N, self.probability_N, self.backoff_N)
        )
        return shift, keys, probability, backoff

    def bits_per_byte(self, texts: list[bytes]) -> np.ndarray:
        """Mean negative log2 probability of each text's bytes, float64; 0 for empty texts. Each text stands alone."""
        lengths = np.array([len(text) for text in texts], np.int64)
        gap = bytes([BOUNDARY]) * self.order
        bytes_L = FOLD[np.frombuffer(b"".join(gap + text for text in texts), np.uint8)]
        starts = np.cumsum(lengths + self.order) - lengths
        bits_L = np.append(-np.log2(self._probabilities(bytes_L)), 0.0)
        edges = np.stack([starts, starts + lengths], axis=1).reshape(-1)
        total = np.add.reduceat(bits_L, edges)[::2] if len(texts) else np.zeros(0)
        return np.where(lengths > 0, total, 0.0) / np.maximum(lengths, 1)

    def _probabilities(self, bytes_L: np.ndarray) -> np.ndarray:
        shift, keys, probabilities, backoffs = self._table
        probability_L = self.unigram_V[bytes_L]
        before_L = np.concatenate([[1.0], self.unigram_backoff_V[bytes_L[:-1]]])
        key_L = bytes_L.astype(np.uint64)
        for length in range(2, self.order + 1):
            key_L = longer(key_L, bytes_L, length)
            tagged_L = with_length(key_L, length)
            slot_L = (tagged_L * MULTIPLIER) >> shift
            is_known_L = keys[slot_L] == tagged_L
            probability_L = np.where(is_known_L, probabilities[slot_L], 0.0) + before_L * probability_L
            before_L = np.concatenate([[1.0], np.where(is_known_L, backoffs[slot_L], 1.0)[:-1]])
        return probability_L


def longer(key_L: np.ndarray, bytes_L: np.ndarray, length: int) -> np.ndarray:
    """Keys of the n-grams of `length` bytes that end at each place, from those one byte shorter."""
    first_L = np.zeros(len(bytes_L), np.uint64)
    first_L[length - 1 :] = bytes_L[: len(bytes_L) - length + 1]
    return key_L | (first_L << np.uint64(8 * (length - 1)))


def with_length(key: np.ndarray, length: int) -> np.ndarray:
    """Keys that differ for n-grams of different lengths, too; none is 0."""
    return key | (np.uint64(length) << np.uint64(61))


def train(text: bytes, order: int, max_ngrams: int) -> ByteNgrams:
    """Counts the n-grams of a text and computes a model of the `max_ngrams` most frequent ones.

    Lower orders are counted by the different bytes before them, not by occurrences. Discounts are absolute, .75.

    Args:
        text: L bytes; memory is about 40 L.
    """
    bytes_L = FOLD[np.frombuffer(text, np.uint8)]
    key_L = bytes_L.astype(np.uint64)
    counted = [np.unique(key_L, return_counts=True)]
    for length in range(2, order + 1):
        key_L = longer(key_L, bytes_L, length)
        counted.append(np.unique(key_L[length - 1 :], return_counts=True))
    for length in range(order - 1, 0, -1):  # continuation counts: how many n-grams one longer end in this one
        suffix = counted[length][0] & np.uint64((1 << (8 * length)) - 1)
        counted[length - 1] = np.unique(suffix, return_counts=True)
    unigram_V = np.full(256, 1.0)
    unigram_V[counted[0][0].astype(np.int64)] += counted[0][1]
    levels = [_level(length, *counted[length - 1]) for length in range(2, order + 1)]
    return _model(order, unigram_V / unigram_V.sum(), levels, max_ngrams)


def _level(length: int, keys: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Of one length: the n-grams with their probability, and the contexts one shorter with their backoff."""
    contexts, owner = np.unique(keys >> np.uint64(8), return_inverse=True)
    total = np.bincount(owner, counts)
    return {
        "keys": with_length(keys, length),
        "counts": counts,
        "probability": (counts - DISCOUNT) / total[owner],
        "contexts": contexts if length == 2 else with_length(contexts, length - 1),
        "backoff": DISCOUNT * np.bincount(owner) / total,
    }


def _model(order: int, unigram_V: np.ndarray, levels: list[dict], max_ngrams: int) -> ByteNgrams:
    names = ("keys", "counts", "probability")
    keys, counts, probability = (np.concatenate([level[name] for level in levels]) for name in names)
    kept = np.argsort(-counts, kind="stable")[:max_ngrams]  # the most frequent first: they win their slot
    keys, probability = keys[kept], probability[kept]
    longest = {"contexts": np.zeros(1, np.uint64), "backoff": np.ones(1)}  # a key that no n-gram has
    contexts, backoffs = (
        np.concatenate([level[name] for level in [longest, *levels[1:]]]) for name in ("contexts", "backoff")
    )
    by_key = np.argsort(contexts)
    place = np.minimum(np.searchsorted(contexts, keys, sorter=by_key), len(contexts) - 1)
    found = by_key[place]
    backoff = np.where(contexts[found] == keys, backoffs[found], 1.0)
    unigram_backoff_V = np.ones(256)
    unigram_backoff_V[levels[0]["contexts"].astype(np.int64)] = levels[0]["backoff"]
    columns = (column.astype(np.float32) for column in (probability, backoff, unigram_backoff_V))
    return ByteNgrams(order, unigram_V, keys, *columns)
