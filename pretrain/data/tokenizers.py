"""Text to token ids and back: one interface, no TensorFlow.

Ids follow seqio's Vocabulary semantics: pad is 0 for the tokenizers trained here, `extra_ids` sentinels sit at the end
of the vocabulary with sentinel 0 last. `decode(encode(text)) == text` for every Unicode text (tested on all of it):
SentencePiece runs with identity normalisation and byte fallback, and U+2581, which it uses inside for the space, is
written as its three bytes.

SentencePiece: Kudo & Richardson 2018 (arXiv:1808.06226); unigram: Kudo 2018 (arXiv:1804.10959).
"""

import abc
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import gin
import numpy as np
import sentencepiece

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError, check
from pretrain.core.rng import host_rng

INFO_FILE = "tokenizer_info.json"
_SPACE_SYMBOL = "\u2581"  # SentencePiece's inner spelling of the space


class Tokenizer(abc.ABC):
    """Encodes text as int32 ids in [0, vocab_size).

    Attributes:
        kind: the name under which `load` finds the class.
        pad_id, bos_id, eos_id, unk_id: special ids; `bos_id` equals `eos_id` where the model has none.
        base_size: number of ids without sentinels.
        num_extra_ids: number of sentinels at the end of the vocabulary.
    """

    kind: str
    model_file: str | None = None
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int
    base_size: int
    num_extra_ids: int

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str: ...

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
        self.unk_id = self._processor.unk_id()
        self.pad_id = max(self._processor.pad_id(), 0)
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
        check(self.eos_id >= 0, "the SentencePiece model has no </s>; train one with eos_id >= 0")
        self._space_symbol_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_SYMBOL.encode()]

    def model_bytes(self) -> bytes:
        return self._model

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = list(texts)
        for text in texts:
            text.encode()  # a lone surrogate raises here, in one place for every kind
        special = [index for index, text in enumerate(texts) if _SPACE_SYMBOL in text]
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


class Bytes(Tokenizer):
    """UTF-8 bytes: pad 0, EOS 1, unk 2, BOS 3, then the 256 bytes (ByT5, arXiv:2105.13626, plus a BOS)."""

    kind = "bytes"
    pad_id, eos_id, unk_id, bos_id = 0, 1, 2, 3
    _OFFSET = 4
    base_size = 256 + _OFFSET

    def __init__(self, extra_ids: int = 0):
        self.num_extra_ids = extra_ids

    def model_bytes(self) -> bytes:
        return b""

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self._OFFSET for text in texts]

    def _decode(self, ids: np.ndarray) -> str:
        return (ids[ids >= self._OFFSET] - self._OFFSET).astype(np.uint8).tobytes().decode("utf-8", "replace")


@gin.configurable
@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to train or load.

    Attributes:
        kind: "bpe" or "unigram" (SentencePiece, trained on the train split), "bytes", or "load".
        vocab_size: ids in all, sentinels and special ids included; a tiny corpus may give fewer.
        path: the model to load, for kind "load": a SentencePiece `.model` or a folder written by this project.
        extra_ids: sentinels for span corruption and infilling.
        sample_megabytes: text to train on, drawn evenly from the corpus.
        seed: draws the sample.
    """

    kind: str = "bpe"
    vocab_size: int = 8192
    path: str | None = None
    extra_ids: int = 0
    sample_megabytes: float = 8.0
    seed: int = 0

    def __post_init__(self):
        kinds = ("bpe", "unigram", "bytes", "load")
        check(self.kind in kinds, f"TokenizerConfig.kind = {self.kind!r}: choose one of {', '.join(kinds)}")
        check(self.extra_ids >= 0, f"TokenizerConfig.extra_ids = {self.extra_ids} must be 0 or more")
        check(self.sample_megabytes > 0, "TokenizerConfig.sample_megabytes must be positive")
        trained = self.kind in ("bpe", "unigram")
        check(not trained or self.vocab_size - self.extra_ids >= 320, "TokenizerConfig.vocab_size is too small: >= 320")
        check((self.kind == "load") == (self.path is not None), "TokenizerConfig.path goes with kind = 'load'")


def load(folder: os.PathLike | str) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder` (a cache's `tokenizer/`).

    Raises:
        UserError: there is none.
        RunError: the model is not the one its information describes.
    """
    folder = storage.Path(folder)
    info = storage.read_json(folder / INFO_FILE)
    if info["kind"] == Bytes.kind:
        tokenizer = Bytes(info["extra_ids"])
    elif info["kind"] == SentencePiece.kind:
        tokenizer = SentencePiece((folder / SentencePiece.model_file).read_bytes(), info["extra_ids"])
    else:
        raise RunError(f"{folder / INFO_FILE}: unknown kind of tokenizer {info['kind']!r}")
    if tokenizer.fingerprint != info["fingerprint"]:
        raise RunError(f"{folder}: the tokenizer does not match its fingerprint; build the cache again")
    return tokenizer


def train_or_load(config: TokenizerConfig, texts: Iterable[str], folder: os.PathLike | str) -> Tokenizer:
    """Trains or loads what `config` asks for and saves it to `folder`; `texts` is read only when training."""
    if config.kind == "bytes":
        tokenizer = Bytes(config.extra_ids)
    elif config.kind == "load":
        tokenizer = _load_path(storage.Path(config.path), config.extra_ids)
    else:
        tokenizer = SentencePiece(_train_sentencepiece(config, texts), config.extra_ids)
    tokenizer.save(folder)
    return tokenizer


def _load_path(path: storage.Path, extra_ids: int) -> Tokenizer:
    if path.is_dir():
        return load(path)
    check(path.exists(), f"TokenizerConfig.path: no such file: {path}")
    return SentencePiece(path.read_bytes(), extra_ids)


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """Trains on a sample; one thread, so that the same text gives the same model on every machine."""
    sample = _sample(_blocks(texts), int(config.sample_megabytes * 1e6), config.seed)
    check(bool(sample), "cannot train a tokenizer: the train split holds no text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size - config.extra_ids,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation is one token
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RunError(f"SentencePiece could not train a vocabulary of {config.vocab_size}: {error}") from error
    return model.getvalue()


def _blocks(texts: Iterable[str], size: int = 2000) -> Iterator[str]:
    """Cuts texts into blocks of about `size` characters at line ends, so that pieces may hold newlines."""
    for text in texts:
        block = ""
        for line in text.splitlines(keepends=True):
            if block and len(block) + len(line) > size:
                yield block
                block = ""
            block += line
            while len(block) > 2 * size:
                yield block[:size]
                block = block[size:]
        if block:
            yield block


def _sample(blocks: Iterable[str], characters: int, seed: int) -> list[str]:
    """A uniform sample of blocks of about `characters` in all, in the order read (reservoir sampling)."""
    rng = host_rng(seed, "tokenizer sample")
    kept: list[tuple[int, str]] = []
    held = capacity = 0
    for index, block in enumerate(blocks):
        if held < characters:
            kept.append((index, block))
            held += len(block)
            capacity = len(kept)
        elif (slot := int(rng.integers(index + 1))) < capacity:
            kept[slot] = (index, block)
    return [block for _, block in sorted(kept)]
