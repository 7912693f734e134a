"""A vocabulary of whole words with their counts, for word vectors: word2vec's way of reading text, not a lossless one.

Text is cut by a regular expression; what lies between words, and words rarer than `min_count`, are left out, as
word2vec leaves them out. Ids: pad 0, EOS 1, unk 2, BOS 3, then words from the most frequent on.
"""

import collections
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.data.tokenizers import Tokenizer

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")


class Words(Tokenizer):
    """Words of a vocabulary.

    Args:
        model: content of the model file, from `count_words`.
        extra_ids: sentinels.

    Attributes:
        words: of each id without sentinels, its text.
        num_special: ids before the first word.
        counts: int64 [vocab_size], occurrences in the text that was counted; 0 for special ids and sentinels.
    """

    kind = "words"
    model_file = "words.json"
    pad_id, eos_id, unk_id, bos_id = range(4)
    num_special = len(SPECIAL)

    def __init__(self, model: bytes, extra_ids: int = 0):
        try:
            read = json.loads(model)
            self._pattern, self._lowercase = re.compile(read["pattern"]), bool(read["lowercase"])
            self.words = [*SPECIAL, *(word for word, _ in read["words"])]
            counts = [count for _, count in read["words"]]
        except (ValueError, TypeError, KeyError, re.error) as error:
            raise UserError(f"not a vocabulary of words: {str(error)[:200]}") from error
        self._model, self.num_extra_ids, self.base_size = model, extra_ids, len(self.words)
        self.counts = np.array([0] * self.num_special + counts + [0] * extra_ids, np.int64)
        self._ids = {word: id for id, word in enumerate(self.words) if id >= self.num_special}

    def model_bytes(self) -> bytes:
        return self._model

    def id_of(self, word: str) -> int:
        """A word's id, spelled as text would have it.

        Raises:
            UserError: the vocabulary does not hold it.
        """
        found = self._ids.get(word.lower() if self._lowercase else word)
        check(found is not None, f"the vocabulary of {len(self._ids):,} words has no {word!r}")
        return found

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = []
        for text in texts:
            text.encode()  # a lone surrogate raises here, as for every kind
            found = map(self._ids.get, self._pattern.findall(text.lower() if self._lowercase else text))
            encoded.append(np.array([id for id in found if id is not None], np.int32))
        return encoded

    def _decode(self, ids: np.ndarray) -> str:
        return " ".join(self.words[id] for id in ids)

    def _begins_with_space(self) -> list[bool]:
        return [True] * self.base_size


def count_words(
    texts: Iterable[str], *, pattern: str = r"\w+", lowercase: bool = True, min_count: int = 5, most: int | None = None
) -> bytes:
    """The model file of the words in `texts`: the most frequent first, equal ones in alphabetical order.

    Args:
        texts: what is counted, all of it.
        pattern: regular expression of a word, without groups.
        lowercase: fold upper case.
        min_count: words that occur less often are left out.
        most: words to keep at most; None for no bound.

    Raises:
        UserError: the pattern is none, or no word is frequent enough.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"TokenizerConfig.word_pattern is not a regular expression: {error}") from error
    check(compiled.groups == 0, "TokenizerConfig.word_pattern must not have groups: write (?:...)")
    counter: collections.Counter[str] = collections.Counter()
    for text in texts:
        counter.update(compiled.findall(text.lower() if lowercase else text))
    counter.pop("", None)
    ordered = sorted(((word, n) for word, n in counter.items() if n >= min_count), key=lambda item: (-item[1], item[0]))
    check(bool(ordered), f"no word occurs {min_count} times in the train split: lower TokenizerConfig.min_count")
    model = {"pattern": pattern, "lowercase": lowercase, "words": ordered[:most]}
    return json.dumps(model, ensure_ascii=False).encode("utf-8", "replace")
