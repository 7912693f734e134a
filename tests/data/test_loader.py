"""The loader: one global sequence of batches, whoever computes it and wherever it starts."""

import copy
import gc
import json
import pathlib
import pickle
import subprocess
import sys
import textwrap
import time
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from toy_data import Halves, Noisy, Plain, log_normal, write_cache

from pretrain.core.errors import RunError, UserError
from pretrain.data import loader as loader_module
from pretrain.data.loader import LoaderConfig, group_rows, make_loader
from pretrain.data.mixing import MixtureConfig

LENGTHS = {"books": [log_normal(60, 90, 1), log_normal(50, 90, 2)], "web": [log_normal(150, 20, 3)]}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), LENGTHS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few batches, so that tests cross their borders."""
    monkeypatch.setattr(loader_module, "BLOCK_BYTES", 6 * 8 * 64 * 4)


def open_loader(cache, objective=None, **options):
    settings = {"split": "train", "batch_size": 8, "sequence_length": 64, "seed": 0, **options}
    return make_loader(cache, objective=objective or Plain(), **settings)


def take(loader, start: int, count: int) -> list[dict]:
    """Batches from the iterator, each checked against its step."""
    batches = []
    for step, batch in loader.iterate(start):
        assert step == start + len(batches)
        batches.append({name: np.array(array) for name, array in batch.items()})
        if len(batches) == count:
            break
    return batches


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 3),
    start=st.one_of(st.integers(0, 60), st.integers(10**5, 10**7)),
    hosts=st.sampled_from([1, 2, 4, 8]),
    objective=st.sampled_from([Plain(), Noisy(), Halves()]),
    weights=st.sampled_from([None, {"books": 0.9, "web": 0.1}, {"web": 1}]),
)
def test_hosts_and_starts_make_one_sequence(cache, seed, start, hosts, objective, weights):
    options = {"seed": seed, "mixture": MixtureConfig(weights=weights)}
    whole = open_loader(cache, objective, **options)
    expected = [whole.batch(step) for step in range(start, start + 3)]
    parts = [open_loader(cache, objective, process_index=i, process_count=hosts, **options) for i in range(hosts)]
    for step, batch in enumerate(expected, start):
        found = [part.batch(step) for part in parts]
        assert_same(batch, {name: np.concatenate([each[name] for each in found]) for name in batch})
    for batch, again in zip(expected, take(open_loader(cache, objective, **options), start, 3), strict=True):
        assert_same(batch, again)
    assert {part.fingerprint for part in parts} == {whole.fingerprint}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 100),
    objective=st.sampled_from([Plain(), Noisy(), Halves()]),
    stays=st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4, 8])), min_size=2, max_size=4),
)
def test_restarts_at_any_step_on_any_number_of_hosts(cache, seed, objective, stays):
    """A run that is stopped again and again, each time with other hosts, sees what an undisturbed one sees."""
    whole, state, step = open_loader(cache, objective, seed=seed), None, 0
    for steps, hosts in stays:
        parts = [
            open_loader(cache, objective, seed=seed, resume=state, process_index=i, process_count=hosts)
            for i in range(hosts)
        ]
        found = zip(*(take(part, step, steps) for part in parts), strict=True)
        for now, batches in enumerate(found, step):
            together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            assert_same(whole.batch(now), together)
        step += steps
        state = json.loads(json.dumps(parts[-1].state(step)))


def test_restarts_with_other_numbers_of_workers_and_hosts(cache):
    """4, none, 2 and 1 worker processes in turn, each on another host of another number of hosts."""
    rng, whole, state, step = np.random.default_rng(0), open_loader(cache, Noisy()), None, 3
    for workers, hosts in zip((4, 0, 2, 1), (2, 8, 1, 4), strict=True):
        host, steps = int(rng.integers(hosts)), int(rng.integers(7, 15))
        options = {"num_workers": workers, "process_index": host, "process_count": hosts}
        mine = slice(host * 8 // hosts, (host + 1) * 8 // hosts)
        loader = open_loader(cache, Noisy(), resume=state, **options)
        for now, batch in enumerate(take(loader, step, steps), step):
            assert_same({name: array[mine] for name, array in whole.batch(now).items()}, batch)
        step += steps
        state = json.loads(json.dumps(loader.state(step)))


def test_threads_and_prefetch_make_the_same_sequence(cache):
    expected = take(open_loader(cache, num_threads=1, prefetch=1), 3, 20)
    for batch, again in zip(expected, take(open_loader(cache, num_threads=8, prefetch=9), 3, 20), strict=True):
        assert_same(batch, again)


def stored_tokens(lengths=LENGTHS) -> np.ndarray:
    sizes = [sum(int(np.sum(shard)) for shard in lengths[source]) for source in sorted(lengths)]
    return np.concatenate([number * 10**8 + np.arange(size) for number, size in enumerate(sizes)])


@pytest.mark.parametrize("length", [1, 7, 64, 500])
@pytest.mark.parametrize("hosts", [1, 4])
def test_every_token_once_per_epoch(cache, length, hosts):
    epochs = 2
    parts = [
        open_loader(cache, sequence_length=length, epochs=epochs, process_index=i, process_count=hosts)
        for i in range(hosts)
    ]
    seen = []
    for part in parts:
        for batch in take(part, 0, part.num_batches + 1):
            seen.append(batch["tokens"][batch["segment_ids"] > 0])
            assert (batch["tokens"][batch["segment_ids"] == 0] == 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.repeat(stored_tokens(), epochs))
    assert len({part.num_batches for part in parts}) == 1


def test_without_an_end_epochs_follow_each_other(cache):
    """By size, the first rows of two epochs hold every token twice, to within the rows at the border."""
    loader = open_loader(cache, batch_size=1)
    rows = loader.info["rows_per_epoch"]
    for epoch in range(2):
        batches = [loader.batch(step) for step in range(epoch * rows, (epoch + 1) * rows)]
        seen = np.concatenate([batch["tokens"][batch["segment_ids"] > 0] for batch in batches])
        np.testing.assert_array_equal(np.sort(seen), stored_tokens())


def test_what_a_packed_row_says(cache):
    loader = open_loader(cache)
    for step in range(20):
        batch = loader.batch(step)
        assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.dtype(np.int32))
        for tokens, segments, positions, firsts, sources in zip(*(batch[name] for name in (
            "tokens", "segment_ids", "positions", "first_inputs", "source_ids")), strict=True):  # fmt: skip
            assert len(set(sources)) == 1
            used = segments > 0
            assert used[0] and not used[np.argmin(used) :].any() if not used.all() else True
            assert sorted(set(segments[used])) == list(range(1, segments.max() + 1))
            for segment in range(1, segments.max() + 1):
                where = np.flatnonzero(segments == segment)
                np.testing.assert_array_equal(where, np.arange(where[0], where[0] + len(where)))
                np.testing.assert_array_equal(positions[where], np.arange(len(where)))
                np.testing.assert_array_equal(tokens[where], tokens[where[0]] + np.arange(len(where)))
                assert (tokens[where] // 10**8 == sources[0]).all()
                assert firsts[where[0]] in (3, tokens[where[0]] - 1) and not firsts[where[1:]].any()
            assert not (positions[~used].any() or firsts[~used].any())


class Longer(Plain):
    """Has a token more at the end of each piece."""

    def prepare(self, record, rng):
        return {"tokens": np.append(record["tokens"], 1_000_000)}

    def prepared_length(self, lengths):
        return lengths + 1


@pytest.mark.parametrize("objective", [Plain(), Longer()], ids=["as stored", "prepared"])
def test_first_inputs_carry_on_a_long_document(tmp_path, objective):
    cache = write_cache(tmp_path, {"a": [[20, 50]]})
    loader = open_loader(cache, objective, sequence_length=16, batch_size=1, epochs=1)
    starts = {}
    for batch in take(loader, 0, loader.num_batches):
        for place in np.flatnonzero((batch["positions"][0] == 0) & (batch["segment_ids"][0] > 0)):
            starts[batch["tokens"][0, place]] = batch["first_inputs"][0, place]
    documents = {first for first, before in starts.items() if before == 3}
    assert len(documents) == 2 and {0} < documents | {0}
    assert all(before == first - 1 for first, before in starts.items() if before != 3)
    assert len(starts) == 2 + 4  # 20 = 16 + 4, 50 = 3 * 16 + 2; with one more token each, 15 + 5 and 3 * 15 + 5


def test_prepare_draws_by_record_and_epoch(cache):
    loader = open_loader(cache, Noisy(), epochs=2, batch_size=4)
    assert all((np.concatenate([b["tokens"] for b in take(loader, 0, 4)]) == 1_000_000).sum(axis=1))
    seen = np.concatenate([batch["tokens"][batch["segment_ids"] > 0] for batch in take(loader, 0, loader.num_batches)])
    np.testing.assert_array_equal(
        np.sort(seen[seen < 1_000_000]), np.sort(np.repeat(stored_tokens()[stored_tokens() < 10**6], 2))
    )


def test_two_packed_features_stay_together(cache):
    loader = open_loader(cache, Halves(), sequence_length={"inputs": 64, "targets": 40}, epochs=1)
    seen = []
    for batch in take(loader, 0, loader.num_batches):
        assert batch["inputs"].shape == (8, 64) and batch["targets"].shape == (8, 40)
        for row in range(8):
            for segment in range(1, batch["inputs_segment_ids"][row].max() + 1):
                inputs = batch["inputs"][row][batch["inputs_segment_ids"][row] == segment]
                targets = batch["targets"][row][batch["targets_segment_ids"][row] == segment]
                assert targets[-1] == 7
                whole = np.concatenate([inputs, targets[:-1]])
                np.testing.assert_array_equal(whole, whole[0] + np.arange(len(whole)))
                seen.append(whole)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), stored_tokens())


class Liar(Noisy):
    def prepare(self, record, rng):
        return record


def test_a_prepare_that_breaks_its_word_is_an_error(cache):
    with pytest.raises(RunError, match=r"Liar.prepare made \d+ tokens of a record of length .* says"):
        open_loader(cache, Liar()).batch(0)


def test_mixture_rates_in_batches(cache):
    loader = open_loader(cache, mixture=MixtureConfig(weights={"books": 3, "web": 1}))
    counts = sum(np.bincount(loader.batch(step)["source_ids"][:, 0], minlength=2) for step in range(500))
    assert loader.info["sources"] == ["books", "web"]
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.01)


def test_a_weight_of_zero_is_said(cache):
    loader = open_loader(cache, mixture=MixtureConfig(weights={"books": 1, "web": 0}))
    assert (loader.info["sources"], loader.info["unused_sources"]) == (["books"], ["web"])


def test_everything_a_batch_depends_on_is_in_the_fingerprint(cache, tmp_path):
    other = write_cache(tmp_path, LENGTHS, fingerprint="other")
    loaders = [
        open_loader(cache),
        open_loader(cache, seed=1),
        open_loader(cache, batch_size=16),
        open_loader(cache, sequence_length=32),
        open_loader(cache, Noisy()),
        open_loader(cache, mixture=MixtureConfig(weights={"books": 1, "web": 1})),
        open_loader(cache, mixture=MixtureConfig(by="examples")),
        open_loader(cache, mixture=MixtureConfig(stop="all")),
        open_loader(cache, epochs=1),
        open_loader(other),
    ]
    assert len({loader.fingerprint for loader in loaders}) == len(loaders)
    assert open_loader(cache, num_threads=5, prefetch=1, process_count=2).fingerprint == loaders[0].fingerprint


def test_the_state_is_small_and_resumes(cache):
    loader = open_loader(cache)
    state = json.loads(json.dumps(loader.state(123)))
    assert len(json.dumps(state)) < 600 and state["step"] == 123 and state["fingerprint"] == loader.fingerprint
    again = open_loader(cache, resume=state, process_count=2, process_index=1)
    assert again.fingerprint == loader.fingerprint
    assert_same({name: array[4:] for name, array in loader.batch(123).items()}, again.batch(123))
    with pytest.raises(UserError, match="step 123 belongs to other data"):
        open_loader(cache, seed=5, resume=state)


def test_changing_the_mixture_begins_a_plan_at_that_step(cache):
    old = open_loader(cache, mixture=MixtureConfig(weights={"books": 0.9, "web": 0.1}))
    state, changed = old.state(40), MixtureConfig(weights={"books": 0.1, "web": 0.9})
    new = open_loader(cache, mixture=changed, resume=state)
    assert new.fingerprint != old.fingerprint
    assert [phase["row"] for phase in new.info["phases"]] == [0, 40 * 8]
    for step in range(40):
        assert_same(old.batch(step), new.batch(step))
    counts = sum(np.bincount(new.batch(step)["source_ids"][:, 0], minlength=2) for step in range(40, 240))
    assert counts[1] / counts.sum() == pytest.approx(0.9, abs=0.03)
    later = open_loader(cache, mixture=changed, resume=new.state(100))  # a further restart changes nothing
    assert later.fingerprint == new.fingerprint
    assert_same(later.batch(99), new.batch(99))
    back = open_loader(cache, mixture=MixtureConfig(weights={"books": 0.9, "web": 0.1}), resume=new.state(100))
    assert [phase["row"] for phase in back.info["phases"]] == [0, 320, 800]


def test_a_schedule_needs_the_number_of_steps(cache):
    mixture = MixtureConfig(schedule=((0.5, {"web": 1}),))
    with pytest.raises(UserError, match="number of training steps"):
        open_loader(cache, mixture=mixture)
    loader = open_loader(cache, mixture=mixture, total_steps=10)
    assert set(loader.batch(4)["source_ids"][:, 0]) == {0, 1} and set(loader.batch(5)["source_ids"][:, 0]) == {1}


def test_the_end_of_the_data(cache):
    loader = open_loader(cache, epochs=1, batch_size=32)
    last = loader.batch(loader.num_batches - 1)
    rows = loader.info["rows_per_epoch"] % 32
    assert rows and last["segment_ids"][:rows].any(axis=1).all() and not last["segment_ids"][rows:].any()
    assert (last["source_ids"][rows:] == -1).all()
    with pytest.raises(UserError, match="data ends before step"):
        loader.batch(loader.num_batches)
    assert take(loader, loader.num_batches, 1) == []
    with pytest.raises(UserError, match="no batch -1"):
        loader.batch(-1)


def test_a_host_may_have_nothing_but_empty_rows(tmp_path):
    cache = write_cache(tmp_path, {"a": [[10]]})
    batch = open_loader(cache, epochs=1, process_index=3, process_count=4).batch(0)
    assert batch["tokens"].shape == (2, 64) and not batch["segment_ids"].any()
    noisy = open_loader(cache, Noisy(), epochs=1, process_index=3, process_count=4).batch(0)
    assert noisy["mask"].shape == (2, 64)


def test_loaders_can_be_pickled(cache):
    loader = open_loader(cache, Noisy())
    loader.batch(0)
    assert_same(pickle.loads(pickle.dumps(loader)).batch(7), loader.batch(7))


def test_memory_is_flat(cache):
    loader, held = open_loader(cache), []
    tracemalloc.start()
    for step, _ in loader.iterate():
        if step >= 1000 and step % 100 == 0:  # windows come and go
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        if step == 3000:
            break
    tracemalloc.stop()
    assert max(held[10:]) - max(held[:10]) < 100_000  # ten batches; a leak of one batch a step would be 10 MB


def test_seeking_a_million_steps_is_quick(tmp_path, monkeypatch):
    monkeypatch.undo()
    lengths = {name: [log_normal(20_000, 300, number)] for number, name in enumerate("ab")}
    loader = open_loader(write_cache(tmp_path, lengths, vocab_size=1 << 31), batch_size=32, sequence_length=1024)
    loader.batch(0)
    best = min(_seconds(lambda step=step: loader.batch(step)) for step in (10**6, 10**6 + 1000, 2 * 10**6))
    assert best < 0.1


def _seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def test_wrong_requests(cache):
    with pytest.raises(UserError, match="8 rows cannot be shared by 3 hosts"):
        open_loader(cache, process_count=3)
    with pytest.raises(UserError, match="nothing in split 'test'"):
        open_loader(cache, split="test")
    with pytest.raises(UserError, match="batch_size = 0 must be positive"):
        open_loader(cache, batch_size=0)
    with pytest.raises(UserError, match="not both"):
        open_loader(cache, epochs=1, mixture=MixtureConfig())
    with pytest.raises(UserError, match="no source x"):
        open_loader(cache, mixture=MixtureConfig(weights={"x": 1}))
    with pytest.raises(UserError, match="no finished cache"):
        open_loader(cache / "nowhere")
    images = copy.copy(Plain())
    object.__setattr__(images, "features", ("image",))
    with pytest.raises(UserError, match=r"no feature image; it has tokens"):
        open_loader(cache, images)
    for wrong in ({"num_workers": -1}, {"num_threads": 0}, {"prefetch": 0}, {"prefetch_to_device": -1}):
        with pytest.raises(UserError, match=r"LoaderConfig"):
            LoaderConfig(**wrong)


def test_data_that_ends_before_the_training_is_refused(cache):
    ends = open_loader(cache, mixture=MixtureConfig(stop="all")).num_batches
    assert open_loader(cache, mixture=MixtureConfig(stop="all"), total_steps=ends).num_batches == ends
    with pytest.raises(UserError, match=rf"data ends after {ends} steps .*'all'.* training takes {ends + 1}"):
        open_loader(cache, mixture=MixtureConfig(stop="all"), total_steps=ends + 1)


def test_empty_and_very_long_documents_are_counted(tmp_path):
    loader = open_loader(write_cache(tmp_path, {"a": [[0, 5, 0, 10_000, 64]]}), epochs=1)
    assert (loader.info["empty_records"], loader.info["split_records"]) == (2, 1)
    seen = np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in take(loader, 0, loader.num_batches)])
    np.testing.assert_array_equal(np.sort(seen), np.arange(10_069))


def test_a_long_document_is_read_once(tmp_path, monkeypatch):
    """Its pieces lie in hundreds of rows; what is shorter is read with each batch that needs it."""
    lengths = {"a": [[40_000, 60, 40_000, 60, 20_000]]}  # 160 kB each, and 80 kB
    loader, read = open_loader(write_cache(tmp_path, lengths), epochs=1), []
    shards = loader._assembler._shards[0]
    real = shards.read
    monkeypatch.setattr(shards, "read", lambda records: read.extend(records.tolist()) or real(records))
    seen = np.concatenate([loader.batch(step)["tokens"].ravel() for step in range(loader.num_batches)])
    assert sorted(read) == [0, 1, 2, 3, 4] and len(np.unique(seen)) == 100_120


def test_a_cache_of_another_tokenizer_is_refused(tmp_path):
    cache = write_cache(tmp_path, LENGTHS)
    (cache / "tokenizer" / "tokenizer_info.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(RunError, match="made by tokenizer toy, the folder holds another"):
        open_loader(cache)


def test_token_ids_beyond_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"token id \d+, the vocabulary ends at 50"):
        open_loader(write_cache(tmp_path, {"a": [[30, 30]]}, vocab_size=50), batch_size=2).batch(0)


def test_large_sources_keep_their_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.sources.KEPT_WINDOWS", 0)
    cache = write_cache(tmp_path, LENGTHS)
    first = open_loader(cache)
    assert len(list((cache / "plans").iterdir())) == 2
    counted = []
    monkeypatch.setattr("pretrain.data.packing.count_rows", lambda *arguments: counted.append(arguments))
    assert_same(open_loader(cache).batch(50), first.batch(50))
    assert not counted


def test_no_tensorflow_is_needed(cache):
    """Loading, tokenizing and decoding where TensorFlow, seqio and Beam cannot be imported."""
    program = f"""
        import sys
        for name in ("tensorflow", "tensorflow_text", "seqio", "apache_beam", "tensorflow_datasets"):
            sys.modules[name] = None
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        from toy_data import Plain
        from pretrain.data.loader import make_loader
        from pretrain.data.tokenizers import Bytes
        loader = make_loader({str(cache)!r}, split="train", objective=Plain(), batch_size=2, sequence_length=16, seed=0)
        print(next(loader.iterate(3))[0], Bytes().decode(Bytes().encode(["fine"])[0]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "3 fine\n", done.stderr


@pytest.mark.parametrize(
    ("batch_size", "rows"),
    [(1, 1), (6, 6), (15, 15), (16, 16), (20, 20), (48, 24), (64, 16), (100, 25), (1024, 16), (4096, 64)],
)
def test_random_numbers_are_drawn_for_groups_of_rows(batch_size, rows):
    assert group_rows(batch_size) == rows
