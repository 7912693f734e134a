"""Trains a tokenizer on a sample of the corpus, or takes one that exists.

Training is deterministic: the same text, configuration and seed give the same model. Unigram: Kudo 2018
(arXiv:1804.10959); BPE: Sennrich et al. 2016 (arXiv:1508.07909).
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import gin
import sentencepiece

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError, check
from pretrain.core.fields import check_fields
from pretrain.core.rng import host_rng
from pretrain.data.tokenizers import Bytes, HuggingFace, SentencePiece, Tokenizer, load
from pretrain.data.word_tokenizer import SPECIAL, Words, count_words

KINDS = ("bpe", "unigram", "byte_bpe", "bytes", "words", "load")
SMALLEST = 320  # the 256 bytes, special ids and a few pieces
TRAINING_THREADS = 8  # on every machine: sums of floats, and with them a unigram model, depend on the number
# How tiktoken's published ranks cut text into words; its ranks files do not say.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


@gin.configurable
@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to train or load.

    Attributes:
        kind: "bpe" or "unigram" (SentencePiece) and "byte_bpe" (Hugging Face) are trained on the train split; "bytes"
            needs no training; "words" counts the words of the train split, for word vectors; "load" takes the model
            at `path`.
        vocab_size: ids in all, sentinels and special ids included; a tiny corpus may give fewer, and so may "words".
        path: for "load": a SentencePiece `.model`, a `tokenizer.json`, tiktoken ranks (`.tiktoken`), or a folder
            written by this project.
        extra_ids: sentinels for span corruption and infilling.
        sample_megabytes: text to train on, drawn evenly from the corpus.
        seed: draws the sample.
        eos_token, bos_token, pad_token, unk_token: names in a `tokenizer.json`, where they are not the usual ones.
        pattern: how tiktoken ranks cut words: "gpt2", "cl100k" or a regular expression.
        word_pattern, lowercase, min_count: for "words": the regular expression of a word, whether upper case is
            folded, and below how many occurrences words are left out.
    """

    kind: str = "bpe"
    vocab_size: int = 8192
    path: str | None = None
    extra_ids: int = 0
    sample_megabytes: float = 8.0
    seed: int = 0
    eos_token: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    pattern: str = "cl100k"
    word_pattern: str = r"\w+"
    lowercase: bool = True
    min_count: int = 5

    def __post_init__(self):
        check_fields(self)
        check(self.kind in KINDS, f"TokenizerConfig.kind = {self.kind!r}: choose one of {', '.join(KINDS)}")
        check(self.extra_ids >= 0, f"TokenizerConfig.extra_ids = {self.extra_ids} must be 0 or more")
        check(self.min_count >= 1, f"TokenizerConfig.min_count = {self.min_count} must be 1 or more")
        check(self.sample_megabytes > 0, "TokenizerConfig.sample_megabytes must be positive")
        trained = self.kind not in ("bytes", "load")
        size = self.vocab_size - self.extra_ids
        check(not trained or size >= SMALLEST, f"TokenizerConfig.vocab_size - extra_ids = {size}: {SMALLEST} or more")
        check((self.kind == "load") == (self.path is not None), "TokenizerConfig.path goes with kind = 'load'")

    @property
    def special(self) -> dict[str, str]:
        names = {role: getattr(self, f"{role}_token") for role in HuggingFace.USUAL}
        return {role: name for role, name in names.items() if name}


def train_or_load(config: TokenizerConfig, texts: Iterable[str], folder: os.PathLike | str) -> Tokenizer:
    """Trains or loads what `config` asks for and saves it to `folder`; `texts` is read only when training.

    Raises:
        UserError: no such model, not a model, or no text to train on.
    """
    if config.kind == "bytes":
        tokenizer: Tokenizer = Bytes(config.extra_ids)
    elif config.kind == "load":
        tokenizer = load_path(config)
    elif config.kind == "words":
        most = config.vocab_size - config.extra_ids - len(SPECIAL)
        how = {"pattern": config.word_pattern, "lowercase": config.lowercase, "min_count": config.min_count}
        tokenizer = Words(count_words(texts, most=most, **how), config.extra_ids)
    else:
        sample = _sample(_blocks(texts), int(config.sample_megabytes * 1e6), config.seed)
        check(bool(sample), "cannot train a tokenizer: the train split holds no text")
        if config.kind == "byte_bpe":
            tokenizer = HuggingFace(_train_byte_bpe(config, sample), config.extra_ids)
        else:
            tokenizer = SentencePiece(_train_sentencepiece(config, sample), config.extra_ids)
    tokenizer.save(folder)
    return tokenizer


def load_path(config: TokenizerConfig) -> Tokenizer:
    """The existing tokenizer at `config.path`."""
    path = storage.Path(config.path)
    if path.is_dir():
        return load(path)
    check(path.exists(), f"TokenizerConfig.path: no such file: {path}")
    if path.name.endswith(".json"):
        return HuggingFace(path.read_bytes(), config.extra_ids, config.special)
    if path.name.endswith(".tiktoken"):
        model = from_tiktoken(path.read_bytes(), config.pattern, config.eos_token or "<|endoftext|>")
        return HuggingFace(model, config.extra_ids, config.special)
    return SentencePiece(path.read_bytes(), config.extra_ids)


def _train_sentencepiece(config: TokenizerConfig, sample: list[str]) -> bytes:
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
            num_threads=TRAINING_THREADS,
            num_sub_iterations=1,  # of EM between prunings of a unigram model: two take longer and gain nothing
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RunError(f"SentencePiece could not train a vocabulary of {config.vocab_size}: {error}") from error
    return model.getvalue()


def _train_byte_bpe(config: TokenizerConfig, sample: list[str]) -> bytes:
    try:
        from tokenizers import Tokenizer as Model
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError("kind = 'byte_bpe' needs the package tokenizers: pip install tokenizers") from error
    model = Model(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - config.extra_ids,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<pad>", "<eos>", "<unk>", "<bos>"],
        show_progress=False,
    )
    model.train_from_iterator(sample, trainer)
    return model.to_str().encode()


def from_tiktoken(ranks: bytes, pattern: str, eos_token: str) -> bytes:
    """A `tokenizer.json` that encodes as tiktoken does with these ranks; EOS takes the id after the last rank.

    Args:
        ranks: content of a `.tiktoken` file, lines of base64 token and rank.
        pattern: a name in `PATTERNS` or a regular expression.
        eos_token: name of the end-of-text token.
    """
    try:
        pairs = [line.split() for line in ranks.splitlines() if line.strip()]
        rank_of = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise UserError(f"not a tiktoken ranks file: {error}") from error
    check(all(bytes([byte]) in rank_of for byte in range(256)), "tiktoken ranks must hold all 256 single bytes")
    check(set(rank_of.values()) == set(range(len(rank_of))), "tiktoken ranks must run from 0 without gaps")
    spelling = _byte_spelling()
    spelled = {token: "".join(spelling[byte] for byte in token) for token in rank_of}
    merges = []
    for token in sorted(rank_of, key=rank_of.__getitem__):  # a merge's priority is the rank of what it makes
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        cuts = [(rank_of[a], rank_of[b], a, b) for a, b in cuts if a in rank_of and b in rank_of]
        merges += [[spelled[a], spelled[b]] for _, _, a, b in sorted(cuts)]
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS.get(pattern, pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    eos = {"id": len(rank_of), "content": eos_token, "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    model = {
        "version": "1.0",
        "added_tokens": [{**eos, **flags}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {spelled[token]: rank for token, rank in rank_of.items()},
            "merges": merges,
            "ignore_merges": True,  # a word that is a token is that token, as in tiktoken
        },
    }
    return json.dumps(model, ensure_ascii=False).encode()


def _byte_spelling() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


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
