"""MinHash signatures of word n-grams: the share of equal positions in two signatures estimates Jaccard similarity.

One permutation hashing (Li, Owen and Zhang, 2012): every n-gram is hashed once and competes for one of the K positions
only, which saves a factor of K on long documents. While positions are empty, all n-grams are hashed again, and what
they bring ranks behind what earlier rounds brought (Dahlgaard, Knudsen and Thorup, "Fast similarity sketching", 2017);
what is still empty after `ROUNDS` takes the minimum of a hash of its own over all n-grams, as in plain MinHash. So each
position is equal with probability J exactly, at any length and without the bias of densification.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pretrain.curate.hashing import SpanHashes

PIECE_BYTES = 1 << 19  # worked on at a time: arrays of it stay in the processor's cache
EMPTY = np.uint64(2**64 - 1)
ROUNDS = 12  # at most 14, to fit into ROUND_BITS
ROUND_BITS = np.uint64(4)
VERIFYING_BIT = np.uint64(30)  # of a value: below those that are small in every minimum, above those of weak products


def signatures(texts: Sequence[bytes], ngram: int, positions: int, seed: int) -> np.ndarray:
    """Signatures of simplified texts.

    Args:
        texts: words between spaces, as from `simplify`.
        ngram: words in an n-gram; a text with fewer words is one n-gram.
        positions: length K of a signature.
        seed: chooses the hash functions.

    Returns:
        uint64 [D, K]; a text without words has `EMPTY` everywhere.
    """
    bits = max(1, (positions - 1).bit_length())
    signatures_DK = np.full((len(texts), positions), EMPTY)
    for documents, pieces in _groups(texts, ngram):
        hashes_S, offsets = shingles(pieces, ngram)
        found_PK = _signatures(hashes_S, offsets, bits, seed)[:, :positions]
        first = np.flatnonzero(np.diff(documents, prepend=-1))
        rows = np.array(documents)[first]
        signatures_DK[rows] = np.minimum(signatures_DK[rows], np.minimum.reduceat(found_PK, first))
    return signatures_DK


def shingles(texts: Sequence[bytes], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the word n-grams of all texts, with repetitions.

    Returns:
        uint64 [S], and int64 [D + 1]: text d has those in [offsets[d], offsets[d + 1]).
    """
    joined = b" " + b"".join(text + b" " for text in texts)
    is_space = np.frombuffer(joined, np.uint8) == ord(" ")
    edges = np.flatnonzero(is_space[1:] != is_space[:-1])
    starts_W, ends_W = edges[0::2], edges[1::2]
    letters_W = np.concatenate([[0], np.cumsum(ends_W - starts_W)])  # before each word, and at the end
    ends_D = np.cumsum([len(text) + 1 for text in texts])
    words_D = np.concatenate([[0], np.searchsorted(starts_W, ends_D)])
    hashes = SpanHashes(joined.translate(None, b" "))
    # First as if all texts were one; then n-grams that reach into the next text go.
    counts_D = np.diff(words_D)
    shingles_D = np.where(counts_D == 0, 0, np.maximum(counts_D - ngram + 1, 1))
    offsets = np.concatenate([[0], np.cumsum(shingles_D)])
    first_S = np.arange(offsets[-1]) + np.repeat(words_D[:-1] - offsets[:-1], shingles_D)
    last_S = np.minimum(first_S + ngram, np.repeat(words_D[1:], shingles_D))
    return hashes(letters_W[first_S], letters_W[last_S]), offsets


def verifying_bits(signatures_DK: np.ndarray) -> np.ndarray:
    """One bit of each position, packed: uint8 [D, K / 8]. Of unequal positions half agree by chance."""
    return np.packbits((signatures_DK >> VERIFYING_BIT & np.uint64(1)).astype(bool), axis=1)


def _groups(texts: Sequence[bytes], ngram: int) -> Iterator[tuple[list[int], list[bytes]]]:
    """Texts in groups of about `PIECE_BYTES`, long ones in several pieces; with the number of each piece's text."""
    documents: list[int] = []
    pieces: list[bytes] = []
    held = 0
    for document, text in enumerate(texts):
        for piece in _pieces(text, ngram):
            documents.append(document)
            pieces.append(piece)
            held += len(piece)
            if held >= PIECE_BYTES:
                yield documents, pieces
                documents, pieces, held = [], [], 0
    if pieces:
        yield documents, pieces


def _pieces(text: bytes, ngram: int) -> Iterator[bytes]:
    """A text in pieces that together have its n-grams: each repeats the last n - 1 words of the one before.

    What is longer than a piece without a space in it is cut; a piece of fewer than n words (of 100 kB each) is one
    n-gram.
    """
    while len(text) > 2 * PIECE_BYTES:
        end = text.find(b" ", PIECE_BYTES, 2 * PIECE_BYTES)
        end = PIECE_BYTES if end < 0 else end
        piece = text[:end]
        yield piece
        text = b" ".join(piece.rsplit(None, ngram - 1)[1:]) + text[end:]
    yield text


def _signatures(hashes_S: np.ndarray, offsets: np.ndarray, bits: int, seed: int) -> np.ndarray:
    """Signatures [D, 2**bits] of texts given by the hashes of their n-grams; a value's top bits are its round.

    Hash functions are products with odd numbers modulo 2**64 (Dietzfelbinger et al., 1997): the top bits choose the
    position, and the order among those of a position is the order of the products.
    """
    documents = len(offsets) - 1
    factors = np.random.default_rng(seed).integers(0, 2**64, ROUNDS + (1 << bits), dtype=np.uint64) | np.uint64(1)
    found_DK = np.full((documents, 1 << bits), EMPTY)
    counts_D = np.diff(offsets)
    row_S = np.repeat(np.arange(documents) << bits, counts_D)
    for round_ in range(ROUNDS):
        values_S = hashes_S * factors[round_]
        position_S = (values_S >> np.uint64(64 - bits)).view(np.int64)
        position_S += row_S
        values_S >>= ROUND_BITS
        values_S |= np.uint64(round_ << 60)
        np.minimum.at(found_DK.reshape(-1), position_S, values_S)
        is_open_D = (found_DK == EMPTY).any(axis=1)
        is_open_S = np.repeat(is_open_D, counts_D)
        hashes_S, row_S, counts_D = hashes_S[is_open_S], row_S[is_open_S], counts_D * is_open_D
    edges = np.flatnonzero(np.diff(row_S, prepend=-1, append=-1))
    for start, end in itertools.pairwise(edges):
        signature_K = found_DK[row_S[start] >> bits]
        missing = np.flatnonzero(signature_K == EMPTY)
        minima = np.minimum.reduce(hashes_S[start:end, None] * factors[ROUNDS + missing])
        signature_K[missing] = (minima >> ROUND_BITS) | np.uint64(ROUNDS << 60)
    return found_DK
