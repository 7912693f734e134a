"""Inspecting a batch: what is shown is what is trained on."""

import numpy as np
import pytest
from toy_data import Halves, Noisy, Pair, Plain, corpus_rows, log_normal, write_cache, write_corpus

from pretrain.core.errors import UserError
from pretrain.data import tokenizers
from pretrain.data.cache import CacheConfig, build_cache
from pretrain.data.inspect import describe_batch
from pretrain.data.inspect_page import batch_page
from pretrain.data.loader import make_loader
from pretrain.data.records import Feature
from pretrain.data.tokenizer_training import TokenizerConfig

OPTIONS = {"split": "train", "batch_size": 4, "sequence_length": 400, "seed": 0}


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    corpus = write_corpus(folder / "corpus")
    build_cache(CacheConfig(tokenizer=TokenizerConfig(kind="bytes", extra_ids=2)), corpus, folder / "cache", workers=1)
    return corpus, folder / "cache", tokenizers.load(folder / "cache" / "tokenizer")


def test_every_document_of_a_row_is_named_with_its_text(text_run):
    corpus, cache, tokenizer = text_run
    loader = make_loader(cache, objective=Plain(), **OPTIONS)
    shown = describe_batch(loader, 3, tokenizer, rows=9, characters=10_000, corpus_dir=corpus)
    by_id = {row["id"]: row for row in corpus_rows(corpus)}
    named = [line.split(" of document ")[1] for line in shown.splitlines() if " of document " in line]
    assert len(named) == len(loader.contents(3).row) > 4
    for name, line in zip(named, [line for line in shown.splitlines() if "tokens: " in line], strict=True):
        identity, origin = name.split(" from ")
        row = by_id[identity]
        assert row["origin"] == origin
        text = "".join(eval(part) for part in [line.split("tokens: ")[1].removesuffix(" <eos>")])
        assert text in row["text"] and (text == row["text"] or "<eos>" not in line or row["text"].endswith(text))
    assert shown.startswith(f"batch 3 of plan {loader.fingerprint}: rows ")


def test_rows_and_text_are_shortened(text_run):
    _, cache, tokenizer = text_run
    shown = describe_batch(make_loader(cache, objective=Plain(), **OPTIONS), 0, tokenizer, rows=1, characters=20)
    assert "… and 3 more rows" in shown and "row 1" not in shown
    assert max(len(line) for line in shown.splitlines()[2:]) < 80


def test_masks_sentinels_and_special_ids_are_shown(text_run):
    _, cache, tokenizer = text_run

    class Shown(Plain):
        def finish(self, packed, rng):
            starts = np.where(packed["positions"] == 0, packed["first_inputs"], packed["tokens"])
            inputs = np.where(packed["positions"] % 2, tokenizer.extra_ids[1], starts)
            return {**packed, "inputs": inputs, "loss_weights": (packed["positions"] > 0).astype(np.float32)}

    shown = describe_batch(make_loader(cache, objective=Shown(), **OPTIONS), 0, tokenizer)
    assert "inputs: <bos> '<extra_id_1>" in shown and "<eos>" in shown
    weights = [line.split(": ")[1] for line in shown.splitlines() if "loss_weights: " in line]
    for weight in weights:
        kept, total = (int(word) for word in weight.split(" not")[0].split(" of "))
        assert kept == total - 1
    noisy = describe_batch(make_loader(cache, objective=Noisy(), **OPTIONS), 0, rows=1)
    assert " not 0, sum " in noisy and "1000000" in noisy


def test_hidden_tokens_are_shown_in_their_place(text_run):
    """What is asked for stands in brackets where it is hidden; put back, it gives the text."""
    _, cache, tokenizer = text_run

    class Hiding(Plain):
        def finish(self, packed, rng):
            rows, length = packed["tokens"].shape
            places = np.broadcast_to(np.arange(3, length, 5), (rows, len(range(3, length, 5))))
            asked = np.take_along_axis(packed["segment_ids"], places, 1) > 0
            hidden = packed["tokens"].copy()
            hidden[:, 3::5] = tokenizer.extra_ids[0]
            targets = {"targets": packed["tokens"][:, 3::5], "loss_weights": asked.astype(np.float32)}
            return {**packed, "tokens": hidden, "target_positions": places, **targets}

    loader = make_loader(cache, objective=Hiding(), **OPTIONS)
    lines = describe_batch(loader, 0, tokenizer, rows=4, characters=100_000).splitlines()
    shown = [line.split("predicts: ")[1] for line in lines if " predicts: " in line]
    batch, expected = make_loader(cache, objective=Plain(), **OPTIONS).batch(0), []
    for row in range(4):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            inside = np.flatnonzero(batch["segment_ids"][row] == segment)
            text = lambda places, row=row: repr(tokenizer.decode(batch["tokens"][row][places]))[1:-1]  # noqa: E731
            runs = np.split(inside, np.flatnonzero(inside % 5 == 3))
            first = text(runs[0]) if inside[0] % 5 != 3 else ""
            rest = [f"[<extra_id_0> → {text(run[:1])}]{text(run[1:])}" for run in runs if len(run) and run[0] % 5 == 3]
            expected.append(first + "".join(rest))
    assert shown == expected and len(shown) > 4


def test_two_features_and_readings(tmp_path):
    cache = write_cache(tmp_path / "a", {"a": [log_normal(30, 50)]})
    shown = describe_batch(make_loader(cache, objective=Halves(), **OPTIONS), 0, rows=1)
    assert "inputs: 0 1 2" in shown or "inputs: " in shown
    assert shown.count("targets: ") == shown.count("inputs: ") == shown.count("of document")
    frames = write_cache(tmp_path / "b", {"a": [[3, 4]]}, features=[Feature("tokens", "float32", (5,))])
    assert "tokens: [3, 5], 0 to 14, mean 7" in describe_batch(make_loader(frames, objective=Plain(), **OPTIONS), 0)


def test_the_end_of_the_data_is_said(tmp_path):
    cache = write_cache(tmp_path, {"a": [[5]]})
    shown = describe_batch(make_loader(cache, objective=Plain(), epochs=1, **OPTIONS), 0)
    assert "row 0: 1 piece of a" in shown and "row 3: empty, past the end of the data" in shown
    with pytest.raises(UserError, match="rows = 0"):
        describe_batch(make_loader(cache, objective=Plain(), **OPTIONS), 0, rows=0)


def test_a_page_shows_every_token_once_and_crosses_out_what_does_not_count(text_run):
    corpus, cache, tokenizer = text_run

    class Masked(Plain):
        """As a causal objective that predicts nothing in the first half of a row."""

        def finish(self, packed, rng):
            weights = (packed["segment_ids"] > 0) & (np.arange(400) >= 200)
            return {**packed, "targets": packed["tokens"], "loss_weights": weights.astype(np.float32)}

    loader = make_loader(cache, objective=Masked(), **OPTIONS)
    page = batch_page(loader, 2, tokenizer, rows=2, corpus_dir=corpus)
    batch = loader.batch(2)
    real = int((batch["segment_ids"][:2] > 0).sum())
    assert page.count("<span") == 2 * real  # tokens and targets
    assert page.count('class="off') == int((batch["segment_ids"][:2, :200] > 0).sum())
    assert page.count("&lt;eos&gt;") == 2 * int((batch["tokens"][:2] == tokenizer.eos_id).sum())
    assert page.count("<section") == int(batch["segment_ids"][:2].max(axis=1).sum())
    assert "file.txt:" in page and page.count("</span>") == page.count("<span") and "<script" not in page


def test_a_page_of_what_is_no_text(tmp_path):
    features = [Feature("frames", "uint8", (2, 2)), Feature("moves", "float32", (3,))]
    cache = write_cache(tmp_path, {"<b>": [[[3, 2], [1, 4]]]}, features=features)

    class Recording(Pair):
        features = ("frames", "moves")

    page = batch_page(make_loader(cache, objective=Recording(), epochs=1, **OPTIONS), 0, rows=2)
    assert "[3, 2, 2], 0 to 11" in page and "[4, 3]" in page and "empty, past the end of the data" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert page.count('class="bar"') == 2 and "<span" not in page
