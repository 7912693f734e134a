"""Held-out documents: every token is scored once, in as much context as promised, and sums are exact."""

import gzip
import json
import lzma
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import run_cli

from pretrain.core.errors import UserError
from pretrain.evaluate import perplexity
from pretrain.evaluate.baselines import compressor_baselines
from pretrain.evaluate.perplexity import Perplexity, document_windows, packed_rows, rows_to_batch, score_documents

BOS = 99


@given(tokens=st.lists(st.integers(0, 9), min_size=1, max_size=90), length=st.integers(2, 16), share=st.floats(0, 0.99))
@settings(deadline=None)
def test_windows_score_each_token_once_from_its_predecessor(tokens, length, share):
    context, scored = int(share * length), []
    for window in document_windows(np.array(tokens), BOS, length, context):
        assert len(window.inputs) == len(window.targets) <= length
        start = len(scored) - window.skip
        assert window.targets.tolist() == tokens[start : start + len(window.targets)]
        assert window.inputs.tolist() == [
            BOS if i == 0 else tokens[i - 1] for i in range(start, start + len(window.inputs))
        ]
        assert window.skip >= min(context, start + window.skip)
        scored += window.targets[window.skip :].tolist()
    assert scored == tokens


@given(sizes=st.lists(st.integers(1, 16), max_size=60))
@settings(deadline=None)
def test_rows_hold_every_window_once_and_fit(sizes):
    windows = [perplexity.Window(np.full(n, i), np.full(n, i), 0) for i, n in enumerate(sizes)]
    rows = list(packed_rows(windows, 16))
    assert sorted(w.inputs[0] for row in rows for w in row) == list(range(len(sizes)))
    assert all(sum(len(w.inputs) for w in row) <= 16 for row in rows)


def test_batch_has_segments_positions_and_weights():
    rows = [
        [
            perplexity.Window(np.array([5, 6, 7]), np.array([6, 7, 8]), 1),
            perplexity.Window(np.array([1]), np.array([2]), 0),
        ]
    ]
    batch = rows_to_batch(rows, 2, 6)
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 0, 0], [0] * 6]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 0, 0], [0] * 6]
    assert batch["loss_weights"].tolist() == [[0, 1, 1, 1, 0, 0], [0] * 6]
    assert batch["targets"].tolist()[0] == [6, 7, 8, 2, 0, 0]


@given(
    documents=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=50), min_size=1, max_size=8),
    batch_size=st.integers(1, 4),
    context=st.floats(0, 0.9),
)
@settings(deadline=None, max_examples=50)
def test_total_is_that_of_a_bigram_model(documents, batch_size, context):
    rng = np.random.default_rng(0)
    nats = rng.random((100, 10))  # what a token costs after another

    def score(batch):
        return float((nats[batch["tokens"], batch["targets"]] * batch["loss_weights"]).sum())

    expected = sum(nats[a, b] for d in documents for a, b in zip([BOS, *d[:-1]], d, strict=True))
    arrays = [np.array(d) for d in documents]
    total, count = score_documents(arrays, score, Perplexity(batch_size, context), bos_id=BOS, length=8)
    assert count == sum(map(len, documents))
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_blocks_of_windows_change_nothing(monkeypatch):
    documents = [np.arange(n) % 7 for n in (5, 30, 2, 19)]
    seen = []
    monkeypatch.setattr(perplexity, "WINDOWS_AT_ONCE", 2)
    total, count = score_documents(
        documents,
        lambda b: float(b["loss_weights"].sum()),
        Perplexity(2, 0.5),
        bos_id=BOS,
        length=8,
        on_batch=seen.append,
    )
    assert total == count == sum(seen) == 56


def test_summary_and_bounds():
    assert perplexity.summary(math.log(2) * 80, 40, 10) == {
        "bits_per_byte": 8.0, "perplexity": 4.0, "tokens": 40, "bytes": 10}  # fmt: skip
    for wrong in ({"batch_size": 0}, {"context": 1.0}, {"context": -0.1}):
        try:
            Perplexity(**wrong)
        except UserError as error:
            assert next(iter(wrong)) in str(error)
        else:
            raise AssertionError(wrong)


def test_baselines():
    texts = ["abab" * 100, "é\n" * 30]
    found = compressor_baselines(texts)
    data = "".join(texts).encode()
    counts = np.unique(np.frombuffer(data, np.uint8), return_counts=True)[1]
    p = counts / counts.sum()
    np.testing.assert_allclose(found["unigram"], -(p * np.log2(p)).sum())
    assert found["gzip"] == 8 * sum(len(gzip.compress(t.encode(), 9, mtime=0)) for t in texts) / len(data)
    assert found["xz"] == 8 * sum(len(lzma.compress(t.encode(), preset=9)) for t in texts) / len(data)


def test_last_line_is_the_result(tiny_run):
    done = run_cli("evaluate", f"--workdir={tiny_run}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"bits_per_byte", "perplexity", "tokens", "bytes", "baselines"} <= result.keys()
    assert result["baselines"].keys() == {"unigram", "gzip", "xz"}
    assert result == json.loads((tiny_run / "evaluation.json").read_text())
    # bytes tokenizer: a token a byte, and the end of each document
    bits = math.log2(result["perplexity"]) * result["tokens"] / result["bytes"]
    np.testing.assert_allclose(bits, result["bits_per_byte"], rtol=1e-9)
