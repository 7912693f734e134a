"""Text to token ids and back: one interface, no TensorFlow.

Ids follow seqio's Vocabulary semantics: pad is 0 for the tokenizers trained here, `extra_ids` sentinels sit at the end
of the vocabulary with sentinel 0 last. `decode(encode(text)) == text` for every Unicode text (tested on all of it):
SentencePiece runs with identity normalisation and byte fallback, and U+2581, which it uses inside for the space, is
written as its three bytes.

SentencePiece: Kudo & Richardson 2018 (arXiv:1808.06226). Byte-level BPE: Radford et al. 2019 (GPT-2), through Hugging
Face `tokenizers`. Bytes: Xue et al. 2021 (ByT5, arXiv:2105.13626).
"""

import abc
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import sentencepiece

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError, check

INFO_FILE = "tokenizer_info.json"
_SPACE_SYMBOL = "\u2581"  # SentencePiece's inner spelling of the space


class Tokenizer(abc.ABC):
    """Encodes text as int32 ids in [0, vocab_size).

    Attributes:
        kind: the name under which `load` finds the class.
        pad_id, bos_id, eos_id, unk_id: special ids; `bos_id` equals `eos_id` where the model has none.
        base_size: number of ids without sentinels.
        num_extra_ids: number of sentinels at the end of the vocabulary.
        counts: int64 [vocab_size], occurrences in the training text, where the model keeps them.
    """

    kind: str
    model_file: str | None = None
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int
    base_size: int
    num_extra_ids: int
    counts: np.ndarray | None = None

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str: ...

    @abc.abstractmethod
    def _begins_with_space(self) -> list[bool]:
        """Of each id without sentinels, whether its text begins with white space; True for special ids."""

    @abc.abstractmethod
    def model_bytes(self) -> bytes:
        """The model file's content; with the special ids it determines everything `encode` does."""

    @property
    def vocab_size(self) -> int:
        return self.base_size + self.num_extra_ids

    @property
    def extra_ids(self) -> np.ndarray:
        """Sentinel ids, int32 [num_extra_ids]; sentinel 0 is the last id of the vocabulary."""
        return np.arange(self.vocab_size - 1, self.base_size - 1, -1, dtype=np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Ids at which a word begins, as white space cuts words, and ids that are no text; bool [vocab_size]."""
        return np.array([*self._begins_with_space(), *[True] * self.num_extra_ids])

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.model_bytes(), digest_size=16).hexdigest()
        return storage.fingerprint([self.kind, digest, self._special_ids()])

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32; no BOS or EOS is added.

        Raises:
            UserError: a text holds a lone surrogate, which no encoding of Unicode can carry.
        """
        try:
            return self._encode(texts)
        except UnicodeEncodeError as error:
            raise UserError(
                f"text with a lone surrogate at character {error.start} cannot be tokenized; "
                "repair it in curation (str.encode('utf-8', 'replace'))"
            ) from error

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`: pad, BOS and EOS give nothing, sentinels give `<extra_id_N>`."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            bad = int(ids[(ids < 0) | (ids >= self.vocab_size)][0])
            raise UserError(f"token id {bad} is outside the vocabulary of {self.vocab_size}; is this its tokenizer?")
        ids = ids[~np.isin(ids, [self.pad_id, self.bos_id, self.eos_id])]
        parts, start = [], 0
        for position in np.flatnonzero(ids >= self.base_size):
            parts += [self._decode(ids[start:position]), f"<extra_id_{self.vocab_size - 1 - ids[position]}>"]
            start = position + 1
        return "".join([*parts, self._decode(ids[start:])])

    def info(self) -> dict:
        """What the loader needs to know without opening the model."""
        return {
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            **self._special_ids(),
        }

    def save(self, folder: os.PathLike | str) -> None:
        """Writes the model file and, last, `tokenizer_info.json`."""
        if self.model_file:
            storage.write_bytes(storage.Path(folder) / self.model_file, self.model_bytes())
        storage.write_json(storage.Path(folder) / INFO_FILE, self.info())

    def _special_ids(self) -> dict[str, int]:
        return {
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "unk_id": self.unk_id,
            "extra_ids": self.num_extra_ids,
        }


class SentencePiece(Tokenizer):
    """A SentencePiece model, trained here or elsewhere."""

    kind = "sentencepiece"
    model_file = "sentencepiece.model"

    def __init__(self, model: bytes, extra_ids: int = 0):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"not a SentencePiece model: {error}") from error
        self._model = model
        self.base_size = self._processor.vocab_size()
        self.num_extra_ids = extra_ids
        self.eos_id = self._processor.eos_id()
        check(self.eos_id >= 0, "the SentencePiece model has no </s>; train one with eos_id >= 0")
        self.unk_id = self._processor.unk_id()
        self.pad_id = self._processor.pad_id() if self._processor.pad_id() >= 0 else self.eos_id
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
        symbol = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_SYMBOL.encode()]
        self._space_symbol_ids = [] if self.unk_id in symbol else symbol

    def model_bytes(self) -> bytes:
        return self._model

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = list(texts)
        for text in texts:
            text.encode()  # a lone surrogate raises here, in one place for every kind
        special = [index for index, text in enumerate(texts) if _SPACE_SYMBOL in text and self._space_symbol_ids]
        encoded = [np.array(ids, np.int32) for ids in self._processor.encode(texts, out_type=int)]
        for index in special:
            encoded[index] = self._encode_space_symbols(texts[index])
        return encoded

    def _encode_space_symbols(self, text: str) -> np.ndarray:
        parts: list[int] = []
        for index, part in enumerate(text.split(_SPACE_SYMBOL)):
            parts += [*(self._space_symbol_ids if index else []), *self._processor.encode(part, out_type=int)]
        return np.array(parts, np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())

    def _begins_with_space(self) -> list[bool]:
        model = self._processor
        special = [model.is_control(id) or model.is_unknown(id) or model.is_unused(id) for id in range(self.base_size)]
        pieces = [model.id_to_piece(id) for id in range(self.base_size)]
        bytes_ = [bytes.fromhex(p[3:5]).isspace() if model.is_byte(id) else False for id, p in enumerate(pieces)]
        spaces = [p[:1] == _SPACE_SYMBOL or p[:1].isspace() for p in pieces]
        return np.any([special, bytes_, spaces], axis=0).tolist()


class Bytes(Tokenizer):
    """UTF-8 bytes: pad 0, EOS 1, unk 2, BOS 3, then the 256 bytes.

    Args:
        extra_ids: sentinels.
        bos: False gives ByT5's ids, which have no BOS: bytes from 3 on.
    """

    kind = "bytes"
    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(self, extra_ids: int = 0, bos: bool = True):
        self._first = 4 if bos else 3
        self.bos_id = 3 if bos else self.eos_id
        self.base_size = 256 + self._first
        self.num_extra_ids = extra_ids

    def model_bytes(self) -> bytes:
        return b""

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self._first for text in texts]

    def _decode(self, ids: np.ndarray) -> str:
        return (ids[ids >= self._first] - self._first).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def _begins_with_space(self) -> list[bool]:
        return [id < self._first or bytes([id - self._first]).isspace() for id in range(self.base_size)]


class HuggingFace(Tokenizer):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library. Text that looks like a special token stays text.

    Args:
        model: content of the file.
        extra_ids: sentinels to add after its vocabulary.
        special: names of the special tokens by role ("eos", "bos", "pad", "unk"); by their usual names where not given.
            A role without a token is played by EOS.
    """

    kind = "huggingface"
    model_file = "tokenizer.json"
    USUAL = {  # noqa: RUF012 (a constant)
        "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]"),
        "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"),
        "pad": ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"),
        "unk": ("<unk>", "[UNK]"),
    }

    def __init__(self, model: bytes, extra_ids: int = 0, special: dict[str, str] | None = None):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("this tokenizer needs the package tokenizers: pip install tokenizers") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"not a tokenizer.json: {str(error)[:200]}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._model, self.num_extra_ids, self._special = model, extra_ids, special or {}
        self.base_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._role("eos")
        self.bos_id, self.pad_id, self.unk_id = (self._role(role) for role in ("bos", "pad", "unk"))

    def info(self) -> dict:
        return {**super().info(), "special_tokens": self._special}

    def _role(self, role: str) -> int:
        asked = self._special.get(role)
        found = [self._tokenizer.token_to_id(name) for name in ([asked] if asked else self.USUAL[role])]
        found = [each for each in found if each is not None]
        check(bool(found) or not asked, f"tokenizer.json has no token {asked!r}")
        check(bool(found) or role != "eos", "tokenizer.json has no end-of-text token; set TokenizerConfig.eos_token")
        return found[0] if found else self.eos_id

    def model_bytes(self) -> bytes:
        return self._model

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            text.encode()  # a lone surrogate raises here, in one place for every kind
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in encoded]

    def _decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def _begins_with_space(self) -> list[bool]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        wordpiece = any(piece.startswith("##") for piece in vocabulary)  # which marks what goes on, not what begins
        spaces = tuple("ĠĊĉč" if "Ġ" in vocabulary else f" \n\t\r{_SPACE_SYMBOL}")  # byte-level spelling, or plain
        found = np.ones(self.base_size, bool)  # also ids that the file leaves out
        for piece, id in vocabulary.items():
            found[id] = not piece.startswith("##") if wordpiece else piece.startswith(spaces)
        found[list(self._tokenizer.get_added_tokens_decoder())] = True
        return found.tolist()


class _Info(TypedDict):
    """What `tokenizer_info.json` holds at least."""

    fingerprint: str
    kind: str
    vocab_size: int
    extra_ids: int
    bos_id: int
    eos_id: int
    special_tokens: NotRequired[dict[str, str | None]]


def load(folder: os.PathLike | str) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder` (a cache's `tokenizer/`).

    Raises:
        UserError: there is none.
        RunError: the model is not the one its information describes.
    """
    folder = storage.Path(folder)
    info = storage.read_json(folder / INFO_FILE, _Info)
    if info["kind"] == Bytes.kind:
        tokenizer = Bytes(info["extra_ids"], bos=info["bos_id"] != info["eos_id"])
    elif info["kind"] == SentencePiece.kind:
        tokenizer = SentencePiece((folder / SentencePiece.model_file).read_bytes(), info["extra_ids"])
    elif info["kind"] == HuggingFace.kind:
        tokenizer = HuggingFace(
            (folder / HuggingFace.model_file).read_bytes(), info["extra_ids"], info["special_tokens"]
        )
    elif info["kind"] == "words":
        from pretrain.data.word_tokenizer import Words  # which is one of the kinds above, and builds on this module

        tokenizer = Words((folder / Words.model_file).read_bytes(), info["extra_ids"])
    else:
        raise RunError(f"{folder / INFO_FILE}: unknown kind of tokenizer {info['kind']!r}")
    if tokenizer.fingerprint != info["fingerprint"]:
        raise RunError(f"{folder}: the tokenizer does not match its fingerprint; build the cache again")
    return tokenizer
