"""seqio tasks and mixtures, both ways: ours registered from a corpus, anyone's read into a cache.

The only module that imports seqio and TensorFlow, inside functions: training and generation never need it. seqio
defines what an example is; order, packing and mixing are ours (`stream.py`): tf.data's order cannot be reproduced.
"""

import functools
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError, check
from pretrain.data.corpus import Examples, check_source_name, document_files, read_documents
from pretrain.data.records import Feature, array_feature, little_endian, token_feature
from pretrain.data.tokenizers import Bytes, SentencePiece, Tokenizer

GROUP = 1024  # examples taken from a dataset at once
SHARDS_READ = 64  # at most so many units of work per split
TYPICAL_BYTES = 4096  # of an example, to choose the number of shards before anything is read


def _seqio() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import seqio
    except ImportError as error:
        raise UserError(f"seqio tasks need the data extra: pip install 'pretrain[data]' ({error})") from error
    return seqio


@functools.cache
def _vocabulary_class() -> type:
    seqio = _seqio()
    import tensorflow as tf

    class TokenizerVocabulary(seqio.Vocabulary):
        """One of our tokenizers as a seqio Vocabulary."""

        def __init__(self, tokenizer: Tokenizer):
            super().__init__(extra_ids=tokenizer.num_extra_ids)
            self.tokenizer = tokenizer

        @property
        def bos_id(self) -> int:
            return self.tokenizer.bos_id

        @property
        def eos_id(self) -> int:
            return self.tokenizer.eos_id

        @property
        def unk_id(self) -> int:
            return self.tokenizer.unk_id

        @property
        def pad_id(self) -> int:
            return self.tokenizer.pad_id

        @property
        def _base_vocab_size(self) -> int:
            return self.tokenizer.base_size

        def _encode(self, s: str) -> list[int]:
            return self.tokenizer.encode([s])[0].tolist()

        def _decode(self, ids: Sequence[int]) -> str:
            return self.tokenizer.decode(ids)

        def _encode_tf(self, s):
            text = tf.convert_to_tensor(s, tf.string)
            ids = tf.numpy_function(lambda each: self.tokenizer.encode([_text(each)])[0], [text], tf.int32)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids):
            return tf.numpy_function(lambda each: self.tokenizer.decode(each).encode(), [ids], tf.string)

        def __eq__(self, other: Any) -> bool:
            return getattr(getattr(other, "tokenizer", None), "fingerprint", None) == self.tokenizer.fingerprint

    return TokenizerVocabulary


def _text(value: Any) -> str:
    """A string tensor's value, which is bytes in a graph and an array outside one."""
    return np.asarray(value).item().decode()


def vocabulary(tokenizer: Tokenizer) -> Any:
    """A seqio Vocabulary that encodes as `tokenizer` does."""
    return _vocabulary_class()(tokenizer)


def register_corpus(
    name: str, corpus_dir: os.PathLike | str, tokenizer: Tokenizer, weights: Mapping[str, float] | None = None
) -> str:
    """Registers a seqio Task `<name>.<source>` for each source of a curated corpus, and the Mixture `<name>` of them.

    Args:
        name: of the mixture; what is registered under it already is replaced.
        corpus_dir: what `pretrain curate` wrote.
        tokenizer: makes the feature "tokens", which ends with EOS.
        weights: mixing rates by source; by number of documents when None.

    Returns:
        `name`.
    """
    seqio = _seqio()
    counts: dict[str, dict[str, int]] = {}
    for file in document_files(corpus_dir):
        for source, split, rows, texts in read_documents(file):
            check_source_name(source)
            splits = counts.setdefault(source, {})
            splits[split] = splits.get(split, 0) + sum(map(bool, texts)) * bool(len(rows))
    feature = seqio.Feature(vocabulary(tokenizer), add_eos=True)
    for source, splits in counts.items():
        seqio.TaskRegistry.remove(task := f"{name}.{source}")
        seqio.TaskRegistry.add(
            task,
            seqio.FunctionDataSource(
                functools.partial(_documents, os.fspath(corpus_dir), source),
                splits=list(splits),
                num_input_examples=splits,
            ),
            preprocessors=[
                functools.partial(seqio.preprocessors.rekey, key_map={"tokens": "text"}),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features={"tokens": feature},
        )
    seqio.MixtureRegistry.remove(name)
    rates = weights or {source: sum(splits.values()) for source, splits in counts.items()}
    seqio.MixtureRegistry.add(name, [(f"{name}.{source}", rate) for source, rate in rates.items() if rate > 0])
    return name


def _documents(corpus_dir: str, source: str, split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
    """A tf.data set of the non-empty texts of one source and split, in the corpus's order."""
    import tensorflow as tf

    def texts() -> Iterator[dict[str, str]]:
        for file in document_files(corpus_dir):
            for found, found_split, _, group in read_documents(file):
                if (found, found_split) == (source, split):
                    yield from ({"text": text} for text in group if text)

    return tf.data.Dataset.from_generator(texts, output_signature={"text": tf.TensorSpec((), tf.string)})


def tokenizer_of(found: Any) -> Tokenizer | None:
    """Our tokenizer for a seqio Vocabulary, so that nothing after the cache needs seqio; None for PassThrough.

    Raises:
        UserError: a kind of vocabulary that has no counterpart here.
    """
    seqio = _seqio()
    if isinstance(found, _vocabulary_class()):
        return found.tokenizer
    if isinstance(found, seqio.PassThroughVocabulary):
        return None
    if isinstance(found, seqio.SentencePieceVocabulary):
        model = storage.Path(found.sentencepiece_model_file)  # `sp_model` holds the sentinels as pieces of text
        plain = found._normalizer_spec_overrides is None
        check(plain, "a SentencePieceVocabulary with normalizer overrides has no counterpart here")
        return SentencePiece(model.read_bytes(), found.extra_ids)
    if isinstance(found, seqio.ByteVocabulary):
        return Bytes(found.extra_ids, bos=False)
    raise UserError(
        f"the vocabulary {type(found).__name__} has no counterpart here; use SentencePieceVocabulary, ByteVocabulary "
        "or pretrain.data.tasks.vocabulary(tokenizer) in the task's output features"
    )


@dataclass(frozen=True)
class TaskInput:
    """A seqio Task or Mixture as input of the cache; one unit of work is one shard of one task and split.

    Attributes:
        mixture: registered name.
        modules: imported first, to register it.
        splits: splits to read; those that a task lacks are passed over.
    """

    mixture: str
    modules: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "validation")

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The one tokenizer of all text features."""
        found = [tokenizer_of(f.vocabulary) for task in self._tasks() for f in task.output_features.values()]
        found = {each.fingerprint: each for each in found if each is not None}
        check(len(found) <= 1, f"{self.mixture} uses {len(found)} different vocabularies; a cache holds tokens of one")
        return next(iter(found.values()), None)

    @property
    def features(self) -> list[Feature]:
        """The feature table as it is stored; a mixture's only text feature is called "tokens", whatever its name."""
        table = self._own_features
        text = [feature for feature in table if feature.is_text]
        return [replace(feature, name="tokens") if [feature] == text else feature for feature in table]

    @functools.cached_property
    def _own_features(self) -> list[Feature]:
        """The same by the tasks' names, from their output features and, above rank 1, their first example."""
        tables = {task.name: self._table(task) for task in self._tasks()}
        first = next(iter(tables.values()))
        for task, table in tables.items():
            check(table == first, f"{task} has the features {table}, {next(iter(tables))} has {first}; they must agree")
        return first

    def rates(self) -> dict[str, float]:
        """The mixture's own rates, by examples, as seqio mixes."""
        found = self._provider()
        if not hasattr(found, "get_rate"):
            return {found.name: 1.0}
        return {task.name: float(found.get_rate(task)) for task in found.tasks}

    def units(self) -> int:
        return len(self._units())

    def sizes(self) -> dict[tuple[str, str], float]:
        sizes = {}
        for task, split, _, _ in self._units():
            check_source_name(task.name)
            sizes[task.name, split] = (task.num_input_examples(split) or 0) * TYPICAL_BYTES
        return sizes

    def examples(self, unit: int) -> Iterator[Examples]:
        task, split, shard, shards = self._units()[unit]
        table, tokenizer = self._own_features, self.tokenizer
        try:
            dataset = task.get_dataset(
                sequence_length=None, split=split, shuffle=False, num_epochs=1,
                shard_info=_seqio().ShardInfo(shard, shards), try_in_mem_cache=False,
            )  # fmt: skip
        except Exception as error:  # a task is the user's code and may raise anything
            raise RunError(f"seqio task {task.name}, split {split}: {type(error).__name__}: {error}") from error
        group, start = [], 0
        for example in dataset.as_numpy_iterator():
            group.append(example)
            if len(group) == GROUP:
                yield _records(task.name, split, (unit << 32) + start, group, table, tokenizer)
                group, start = [], start + GROUP
        yield _records(task.name, split, (unit << 32) + start, group, table, tokenizer)

    def _tasks(self) -> list[Any]:
        return list(_seqio().get_subtasks(self._provider()))

    def _provider(self) -> Any:
        """The registered Task or Mixture."""
        for module in self.modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # the user's code: it may raise anything
                raise UserError(f"--module_import={module}: {str(error) or type(error).__name__}") from error
        seqio = _seqio()
        try:
            return seqio.get_mixture_or_task(self.mixture)
        except ValueError as error:
            known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
            hint = f"registered are {', '.join(known[:10])}" if known else "none is registered: use --module_import"
            raise UserError(f"no seqio task or mixture is named {self.mixture!r}; {hint}") from error

    def _units(self) -> list[tuple[Any, str, int, int]]:
        """(task, split, shard, shards) of every unit."""
        units = []
        for task in sorted(self._tasks(), key=lambda task: task.name):
            for split in self.splits:
                if split in task.splits:
                    shards = min(len(task.source.list_shards(split)), SHARDS_READ)
                    units += [(task, split, shard, shards) for shard in range(shards)]
        check(bool(units), f"{self.mixture} has none of the splits {', '.join(self.splits)}")
        return units

    def _table(self, task: Any) -> list[Feature]:
        table = []
        first = _first_example(task) if any(feature.rank > 1 for feature in task.output_features.values()) else {}
        for name, feature in task.output_features.items():
            dtype = np.dtype(
                feature.dtype.as_numpy_dtype if hasattr(feature.dtype, "as_numpy_dtype") else feature.dtype
            )
            tokenizer = tokenizer_of(feature.vocabulary)
            if tokenizer:
                table.append(token_feature(tokenizer.vocab_size, name))
                continue
            check(dtype.kind in "iufb", f"{task.name}: feature {name} is {dtype}; only numbers can be cached")
            shape = tuple(first[name].shape[1:]) if feature.rank > 1 else ()
            table.append(array_feature(name, dtype, shape))
        return table


def _first_example(task: Any) -> dict[str, np.ndarray]:
    split = next(iter(task.splits))
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False)
    for example in dataset.take(1).as_numpy_iterator():
        return example
    raise RunError(f"seqio task {task.name} gives no example in split {split}")


def _records(
    source: str, split: str, first: int, group: list[dict], table: Sequence[Feature], tokenizer: Tokenizer | None
) -> Examples:
    """Examples of a task as records; an example without any element is left out and counted."""
    numbers, text_bytes, lengths, data = [], [], [], []
    for number, example in enumerate(group, first):
        arrays = [_stored(example, feature, tokenizer, source) for feature in table]
        if any(len(array) for array in arrays):
            numbers.append(number)
            lengths.append([len(array) for array in arrays])
            data += [array.tobytes() for array in arrays]
            text_bytes.append(
                sum(_text_bytes(example, f, array, tokenizer) for f, array in zip(table, arrays, strict=True))
            )
    return Examples(
        source, split, np.array(numbers, np.uint64), np.array(text_bytes, np.uint32),
        np.array(lengths, np.uint32).reshape(-1, len(table)), b"".join(data), len(group) - len(numbers),
    )  # fmt: skip


def _text_bytes(example: Mapping, feature: Feature, array: np.ndarray, tokenizer: Tokenizer | None) -> int:
    """UTF-8 bytes of a text feature: before tokenization where the task kept it, otherwise of what it decodes to."""
    if not feature.is_text or tokenizer is None:
        return 0
    kept = example.get(f"{feature.name}_pretokenized")
    return len(kept if isinstance(kept, bytes) else tokenizer.decode(array).encode())


def _stored(example: Mapping, feature: Feature, tokenizer: Tokenizer | None, source: str) -> np.ndarray:
    """One feature of an example as it is stored, [elements, ...]."""
    if feature.name not in example:
        raise RunError(f"seqio task {source}: an example lacks the feature {feature.name}")
    array = np.asarray(example[feature.name])
    array = array.reshape(-1) if array.ndim == 0 else array
    if array.shape[1:] != feature.shape:
        raise RunError(f"seqio task {source}: {feature.name} has shape {array.shape}, others (n, *{feature.shape})")
    stored = np.dtype(feature.dtype)
    limits = np.iinfo(stored) if stored.kind in "iu" else None
    high = tokenizer.vocab_size - 1 if tokenizer and feature.is_text else limits and limits.max
    if limits and array.size and not limits.min <= array.min() <= array.max() <= high:
        raise RunError(
            f"seqio task {source}: {feature.name} has values from {array.min()} to {array.max()}; "
            f"{limits.min} to {high} can be stored"
        )
    return array.astype(little_endian(feature.dtype))
