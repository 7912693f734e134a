"""Word vectors: nearest words, analogies, similarity judgements, and word2vec's files.

Analogies by vector arithmetic: Mikolov et al. 2013 (arXiv:1301.3781). Judgements: WordSim-353 (Finkelstein et al. 2002)
and files like it. Files: word2vec's text and binary formats, which gensim reads and writes.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Sequence

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """Words and their vectors.

    Attributes:
        words: one spelling a row, no two alike.
        vectors: float32 [words, embed].
    """

    words: Sequence[str]
    vectors: np.ndarray

    def __post_init__(self):
        check(len(self.words) == len(self.vectors), f"{len(self.words)} words have {len(self.vectors)} vectors")
        check(len(self.rows) == len(self.words), "a word occurs twice among the word vectors")

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """Vectors of length 1, float32 [words, embed]; a vector of zeros stays one."""
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return (self.vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def row(self, word: str) -> int:
        """Row of a word, as it is spelled or else in lower case.

        Raises:
            UserError: there is no vector for it.
        """
        found = self.rows.get(word, self.rows.get(word.lower()))
        check(found is not None, f"no vector for {word!r} among {len(self.words):,} words")
        return found

    def most_similar(
        self, positive: Sequence[str], negative: Sequence[str] = (), count: int = 10
    ) -> list[tuple[str, float]]:
        """Words by the cosine to the mean direction of `positive` minus `negative`, which themselves are left out."""
        check(bool(positive or negative), "give at least one word")
        asked = [self.row(word) for word in (*positive, *negative)]
        signs = np.array([1] * len(positive) + [-1] * len(negative), np.float32)
        target = signs @ self.directions[asked]
        scores = self.directions @ (target / max(float(np.linalg.norm(target)), 1e-9))
        scores[asked] = -np.inf
        best = np.argsort(-scores, kind="stable")[: max(0, min(count, len(scores) - len(set(asked))))]
        return [(self.words[row], float(scores[row])) for row in best]

    def analogy(self, a: str, b: str, c: str, count: int = 10) -> list[tuple[str, float]]:
        """What is to `c` as `b` is to `a`: king for (man, woman) and c = ... by the vector b - a + c."""
        return self.most_similar([b, c], [a], count)

    def correlation(self, path: os.PathLike | str) -> dict[str, float]:
        """Spearman's correlation of cosines with human judgements.

        Args:
            path: lines of word, word, score, with tabs between; lines from "#" on are comments.

        Returns:
            `spearman`; `pairs` that were compared; `missing` pairs with a word that has no vector.
        """
        check(Path(path).exists(), f"no such file: {path}")
        from scipy.stats import spearmanr  # here, as in `core.sound`: it takes long to import

        cosines, scores, missing = [], [], 0
        for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                first, second, score = line.split("\t")[:3]
                judged = float(score)
            except ValueError as error:
                raise UserError(f"{path}:{number}: expected word, word, score with tabs between") from error
            try:
                rows = self.row(first), self.row(second)
            except UserError:
                missing += 1
                continue
            cosines.append(float(self.directions[rows[0]] @ self.directions[rows[1]]))
            scores.append(judged)
        check(len(scores) >= 2, f"{path}: fewer than two pairs have vectors ({missing} pairs miss a word)")
        return {"spearman": float(spearmanr(cosines, scores).statistic), "pairs": len(scores), "missing": missing}

    def save(self, path: os.PathLike | str, binary: bool | None = None) -> None:
        """Writes word2vec's format; binary where asked, or by the ending ".bin"."""
        spaced = next((word for word in self.words if not word or any(c in word for c in " \n")), None)
        check(spaced is None, f"word2vec's format cannot hold the word {spaced!r}, which is empty or has white space")
        out = io.BytesIO()
        out.write(f"{len(self.words)} {self.vectors.shape[1]}\n".encode())
        for word, vector in zip(self.words, self.vectors.astype("<f4"), strict=True):
            if is_binary(path, binary):
                out.write(word.encode() + b" " + vector.tobytes() + b"\n")
            else:
                out.write(f"{word} {' '.join(map(str, vector))}\n".encode())
        Path(path).write_bytes(out.getvalue())


def is_binary(path: os.PathLike | str, asked: bool | None) -> bool:
    """Which of the two formats a file has."""
    return str(path).endswith(".bin") if asked is None else asked


def load_word_vectors(path: os.PathLike | str, binary: bool | None = None) -> WordVectors:
    """Reads word2vec's format; binary where asked, or by the ending ".bin".

    Raises:
        UserError: there is no such file, it is of another kind, or it ends early.
    """
    check(Path(path).exists(), f"no such file: {path}")
    data = Path(path).read_bytes()
    header, _, body = data.partition(b"\n")
    try:
        count, width = map(int, header.split())
        words, vectors = (_binary if is_binary(path, binary) else _text)(body, count, width)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole file of word vectors in word2vec's format: {error}") from error
    return WordVectors(words, vectors)


def _text(body: bytes, count: int, width: int) -> tuple[list[str], np.ndarray]:
    rows = [line.rstrip(" ").split(" ") for line in body.decode().split("\n") if line.strip()]
    if len(rows) != count or any(len(row) != width + 1 for row in rows):
        raise ValueError(f"{count} words of {width} numbers were announced, {len(rows)} lines are there")
    values = np.array([row[1:] for row in rows], np.float32).reshape(count, width)
    return [row[0] for row in rows], values


def _binary(body: bytes, count: int, width: int) -> tuple[list[str], np.ndarray]:
    words, vectors, start = [], np.empty((count, width), np.float32), 0
    for row in range(count):
        end = body.index(b" ", start)
        words.append(body[start:end].decode().lstrip("\n"))
        start = end + 1 + 4 * width
        vectors[row] = np.frombuffer(body, "<f4", width, end + 1)
    return words, vectors
