"""Tokenizers: any text comes back, special ids never come out of text, and a model is known by its fingerprint."""

import base64
import itertools
import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from toy_data import text

from pretrain.core.errors import RunError, UserError
from pretrain.data import tokenizers
from pretrain.data.tokenizer_training import TokenizerConfig, from_tiktoken, train_or_load
from pretrain.data.tokenizers import Bytes, HuggingFace, SentencePiece

TEXTS = [text(np.random.default_rng(seed), 60) for seed in range(40)]
KINDS = ["bpe", "unigram", "byte_bpe", "bytes", "tiktoken"]
SPECIAL = [
    "<s>",
    "</s>",
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|endoftext|>",
    "<0x41>",
    "<extra_id_0>",
    "\u2581",
    "\u2585",
]


def tiktoken_ranks() -> bytes:
    """All bytes, and merges learnt by counting, as a ranks file."""
    words = [[bytes([byte]) for byte in word.encode()] for word in " ".join(TEXTS).split(" ")]
    tokens = [bytes([byte]) for byte in range(256)]
    for _ in range(25):
        pairs: dict[tuple, int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(sorted(pairs), key=pairs.__getitem__)
        tokens.append(b"".join(best))
        words = [merged(word, tokens[-1], best) for word in words]
    return b"\n".join(base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens))


def merged(word: list[bytes], token: bytes, pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] = token
        else:
            out.append(piece)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """One tokenizer of each kind, as loaded from the folder it was saved to."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "tiktoken":
            (folder / "ranks.tiktoken").write_bytes(tiktoken_ranks())
            config = TokenizerConfig(kind="load", path=str(folder / "ranks.tiktoken"), extra_ids=3)
        else:
            config = TokenizerConfig(kind=kind, vocab_size=500, extra_ids=3)
        trained = train_or_load(config, TEXTS, folder / "saved")
        found[kind] = tokenizers.load(folder / "saved")
        assert found[kind].fingerprint == trained.fingerprint
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_unicode_comes_back(made, kind):
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(characters[start : start + 2000]) for start in range(0, len(characters), 2000)]
    texts += [" ".join(characters[start : start + 2000]) for start in range(0, 0x3000, 2000)]
    for original, ids in zip(texts, made[kind].encode(texts), strict=True):
        assert made[kind].decode(ids) == original
        assert ids.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from([*SPECIAL, "  ", "\n\n", "\t", "\r\n"])
        )
    )
)
def test_any_text_comes_back(made, kind, parts):
    original, tokenizer = "".join(parts), made[kind]
    [ids] = tokenizer.encode([original])
    assert tokenizer.decode(ids) == original
    assert not ids.size or 0 <= ids.min() <= ids.max() < tokenizer.base_size
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    assert not special & set(ids.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_where_white_space_does(made, kind):
    tokenizer, words = made[kind], ["it's", "one", "tiny\N{GREEK SMALL LETTER MU}", "indivisible", "(b)", "7"]
    [ids] = tokenizer.encode([" ".join(words)])
    starts = np.flatnonzero(tokenizer.starts_word[ids])
    parts = np.split(ids, starts[starts > 0])
    assert [tokenizer.decode(part).strip() for part in parts] == words
    for space in "\n\t":
        [ids] = tokenizer.encode([f"a{space}"])
        assert tokenizer.starts_word[ids[-1]]
    [ids] = tokenizer.encode(["\N{LATIN SMALL LETTER A WITH GRAVE}"])  # its second byte is that of a space in Latin-1
    assert not tokenizer.starts_word[ids[1:]].any()
    special = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.extra_ids]
    assert tokenizer.starts_word[special].all() and tokenizer.starts_word.shape == (tokenizer.vocab_size,)


def test_words_of_wordpiece():
    from tokenizers import Tokenizer, models

    vocabulary = {"[SEP]": 0, "[UNK]": 1, "play": 2, "##ing": 3, "##s": 4, "\N{LATIN SMALL LETTER C WITH CARON}": 6}
    model = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str().encode()
    assert HuggingFace(model).starts_word.tolist() == [True, True, True, False, False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_and_sentinels(made, kind):
    tokenizer = made[kind]
    np.testing.assert_array_equal(tokenizer.extra_ids, tokenizer.vocab_size - 1 - np.arange(3))
    [ids] = tokenizer.encode(["one two"])
    wrapped = [
        tokenizer.bos_id,
        *ids,
        tokenizer.extra_ids[0],
        *ids,
        tokenizer.extra_ids[2],
        tokenizer.eos_id,
        tokenizer.pad_id,
    ]
    assert tokenizer.decode(wrapped) == "one two<extra_id_0>one two<extra_id_2>"
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([wrong])


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_is_a_clear_error(made, kind):
    with pytest.raises(UserError, match="lone surrogate at character 2"):
        made[kind].encode(["ok\ud800"])


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte_bpe"])
def test_training_repeats(tmp_path, made, kind):
    again = train_or_load(TokenizerConfig(kind=kind, vocab_size=500, extra_ids=3), TEXTS, tmp_path)
    assert again.fingerprint == made[kind].fingerprint
    assert again.vocab_size <= 500


def test_fingerprints_tell_kinds_models_and_sentinels_apart(made):
    every = [*made.values(), Bytes(), Bytes(bos=False), Bytes(extra_ids=3, bos=False)]
    assert len({tokenizer.fingerprint for tokenizer in every}) == len(every)


def test_whitespace_and_newlines_become_pieces(tmp_path):
    code = ["def f():\n        return 1\n\n\n" * 30] * 20
    [ids] = train_or_load(TokenizerConfig(vocab_size=400), code, tmp_path).encode(["\n        return"])
    assert len(ids) <= 3


def test_the_sample_covers_the_whole_corpus(tmp_path):
    """A word that only the last document has is learnt from a sample of a tenth."""
    texts = ["aaaa bbbb cccc " * 40 for _ in range(200)] + ["zzzyzzzy " * 70 for _ in range(200)]
    tokenizer = train_or_load(TokenizerConfig(vocab_size=400, sample_megabytes=0.02), texts, tmp_path)
    assert len(tokenizer.encode(["zzzyzzzy"])[0]) <= 3


def reference_tiktoken(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """tiktoken's own algorithm: merge the neighbours whose merge has the lowest rank, until none has one."""
    parts = [bytes([byte]) for byte in word]
    while True:
        merges = [(ranks.get(a + b, 1 << 30), place) for place, (a, b) in enumerate(itertools.pairwise(parts))]
        if not merges or min(merges)[0] == 1 << 30:
            return [ranks[part] for part in parts]
        place = min(merges)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@given(st.text("abcdefjmnopqrtuvxyz\u4e2d\u6587\u00e9", min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_tiktoken_ranks_encode_as_tiktoken_does(made, word):
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in tiktoken_ranks_once().splitlines()}
    assert made["tiktoken"].encode([word])[0].tolist() == reference_tiktoken(ranks, word.encode())


def tiktoken_ranks_once(_kept: list = []) -> bytes:  # noqa: B006 (kept between examples on purpose)
    if not _kept:
        _kept.append(tiktoken_ranks())
    return _kept[0]


def test_a_sentencepiece_file_can_be_loaded(tmp_path, made):
    (tmp_path / "theirs.model").write_bytes(made["bpe"].model_bytes())
    loaded = train_or_load(TokenizerConfig(kind="load", path=str(tmp_path / "theirs.model")), [], tmp_path / "ours")
    assert isinstance(loaded, SentencePiece) and loaded.vocab_size == made["bpe"].base_size
    np.testing.assert_array_equal(loaded.encode(TEXTS[:1])[0], made["bpe"].encode(TEXTS[:1])[0])


def test_a_tokenizer_json_can_be_loaded_with_its_own_names(tmp_path, made):
    model = json.loads(made["byte_bpe"].model_bytes())
    for token in model["added_tokens"]:
        token["content"] = token["content"].replace("<eos>", "<END>")
    model["model"]["vocab"] = {name.replace("<eos>", "<END>"): rank for name, rank in model["model"]["vocab"].items()}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(model))
    with pytest.raises(UserError, match=r"set TokenizerConfig\.eos_token"):
        train_or_load(TokenizerConfig(kind="load", path=str(file)), [], tmp_path / "a")
    config = TokenizerConfig(kind="load", path=str(file), eos_token="<END>")
    assert train_or_load(config, [], tmp_path / "b").eos_id == tokenizers.load(tmp_path / "b").eos_id == 1
    with pytest.raises(UserError, match="no token '<STOP>'"):
        train_or_load(TokenizerConfig(kind="load", path=str(file), eos_token="<STOP>"), [], tmp_path / "c")


def test_a_folder_of_ours_can_be_loaded(tmp_path, made):
    made["unigram"].save(tmp_path / "first")
    again = train_or_load(TokenizerConfig(kind="load", path=str(tmp_path / "first")), [], tmp_path / "second")
    assert again.fingerprint == tokenizers.load(tmp_path / "second").fingerprint == made["unigram"].fingerprint


def test_a_changed_model_is_noticed(tmp_path, made):
    made["byte_bpe"].save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<unk>", "<UNK>"))
    with pytest.raises(RunError, match="does not match its fingerprint"):
        tokenizers.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        tokenizers.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wordpiece"}, "choose one of bpe, unigram"),
        ({"vocab_size": 300}, "320 or more"),
        ({"vocab_size": 400, "extra_ids": 100}, "vocab_size - extra_ids = 300"),
        ({"extra_ids": -1}, "0 or more"),
        ({"sample_megabytes": 0}, "must be positive"),
        ({"path": "x"}, "goes with kind = 'load'"),
        ({"kind": "load"}, "goes with kind = 'load'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**settings)


def test_wrong_models(tmp_path):
    for name, content, message in (
        ("a.model", b"nonsense", "not a SentencePiece model"),
        ("a.json", b"{}", "not a tokenizer.json"),
        ("a.tiktoken", b"!!! 5", "not a tiktoken ranks file"),
        ("b.tiktoken", b"YQ== 0", "all 256 single bytes"),
        ("c.tiktoken", tiktoken_ranks_once().replace(b" 280", b" 999"), "without gaps"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            train_or_load(TokenizerConfig(kind="load", path=str(tmp_path / name)), [], tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        train_or_load(TokenizerConfig(kind="load", path=str(tmp_path / "gone.model")), [], tmp_path / "out")
    with pytest.raises(UserError, match="holds no text"):
        train_or_load(TokenizerConfig(), [], tmp_path / "out")


def test_tiktoken_words_are_cut_by_the_pattern():
    ranks = b"\n".join([*tiktoken_ranks_once().splitlines(), base64.b64encode(b"1234") + b" 281"])
    cl100k, gpt2 = (HuggingFace(from_tiktoken(ranks, name, "<|endoftext|>")) for name in ("cl100k", "gpt2"))
    assert gpt2.encode(["1234"])[0].tolist() == [281]
    assert len(cl100k.encode(["1234"])[0]) == 4  # three digits at most
    assert gpt2.eos_id == 282
