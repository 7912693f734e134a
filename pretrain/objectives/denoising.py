"""Denoising: a text with parts taken away is the input, and what was taken away, or the whole text, is to be written.

T5's span corruption (Raffel et al. 2020, section 3.1.4), UL2's mixture of denoisers (Tay et al. 2022, section 3.1) and
BART's text infilling (Lewis et al. 2020, section 2.2), for an encoder-decoder or a decoder that reads the inputs as a
prefix. Rows are packed with text first; then every piece is corrupted by itself, so that its inputs or its targets fill
the row (`spans`). Axes: B batch · L length · P pieces · T all their tokens.
"""

import abc
import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import gin
import jax
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Terms
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import check_loss_fields, decode, decoder_spec, token_loss
from pretrain.objectives.pieces import Pieces, join, put_together, take_apart
from pretrain.objectives.spans import NO_LIMIT, Noise, Room, allot, infilling_of, spans_of

Layout = Literal["encoder_decoder", "decoder"]
MULTIPLE = 4  # of a decoder's row: inputs and targets together do not come in all lengths


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """What all denoising objectives share: the layout, the lengths, the loss.

    Attributes:
        layout: "encoder_decoder", or "decoder": inputs and targets in one sequence, whose inputs all tokens look at.
        z_loss, label_smoothing: as in `Causal`.
        sentinels: ids for masks and modes.
    """

    layout: Layout = "encoder_decoder"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    sentinels: int = 100

    features = ("tokens",)

    def __post_init__(self):
        check_fields(self)
        check_loss_fields(self)

    @property
    @abc.abstractmethod
    def noise(self) -> Sequence[Noise]:
        """The kinds of noise; `kinds` draws one for each row."""

    def corrupt(self, pieces: Pieces, noise_P, spans_P, kind_P, rng) -> tuple[Pieces, Pieces]:
        """Inputs and targets of pieces that have so much noise in so many spans: here sentinels for spans, as in T5."""
        is_noise_T, span_T = spans_of(pieces.lengths_P, noise_P, spans_P, rng)
        sentinel_T = self.vocabulary.sentinel(span_T)
        follows_noise_T = np.concatenate([[True], is_noise_T[:-1]])[: len(is_noise_T)]
        turns_T = is_noise_T != follows_noise_T  # the first token of each span, and of the text between spans

        def marked(taken_T, lengths_P):
            """The text with each run of `taken_T` made one sentinel."""
            tokens_T = np.where(taken_T, sentinel_T, pieces.tokens_T)[~taken_T | turns_T]
            return Pieces(tokens_T, lengths_P, *pieces[2:])

        inputs = marked(is_noise_T, pieces.lengths_P - noise_P + spans_P)
        targets = marked(~is_noise_T, noise_P + spans_P)
        mode_N = np.array([-1 if n.mode is None else self.vocabulary.sentinel(n.mode) for n in self.noise])
        eos = self.vocabulary.eos_id
        return with_ends(inputs, eos, mode_N[kind_P]), with_ends(targets, eos)

    def kinds(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """The kind of noise of each row, int64 [rows]."""
        del rng
        return np.zeros(rows, np.int64)

    @property
    def passes(self) -> str:
        """Which forward pass this is; objectives with the same one can share a batch."""
        return self.layout

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(architectures=(self.layout,), chunkable=self.layout == "decoder")

    def packed_length(self, length: int) -> int:
        """Tokens of text whose inputs (in a decoder, inputs and targets) fill `length`; for T5 512 gives 568.

        Raises:
            UserError: there are more spans than sentinels, or a decoder's length is no multiple of 4.
        """
        kind = type(self).__name__
        check(
            self.layout == "encoder_decoder" or length % MULTIPLE == 0,
            f"{kind} in a decoder needs a SEQUENCE_LENGTH that is a multiple of {MULTIPLE}, not {length}",
        )
        columns = min(self._columns(noise, length) for noise in self.noise)
        check(columns >= 2, f"{kind}: a sequence of {length} is too short for any noise")
        spans = 1 if self.noise[0].whole else max(noise.counts(columns)[1] for noise in self.noise)
        modes = len({noise.mode for noise in self.noise} - {None})
        check(
            spans + modes <= self.sentinels,
            f"{kind} needs {spans + modes} sentinels for sequences of {length}: set {kind}.sentinels and "
            f"TokenizerConfig.extra_ids to {spans + modes} and cache again, or make the sequences shorter",
        )
        return columns

    def _columns(self, noise: Noise, length: int) -> int:
        """As `packed_length`, for one kind of noise."""

        def need(tokens: int) -> int:
            inputs, targets = noise.sizes(tokens)
            if self.layout == "decoder":
                return inputs + targets - 1
            return max(inputs, targets) if noise.whole else inputs

        columns = bisect.bisect_right(range(64 * length), length, key=need) - 1
        # As T5's code has it: at half noise, targets are no longer than inputs, if one token less of text does it.
        halves = self.layout == "encoder_decoder" and noise.density == 0.5 and not noise.whole
        return columns - 1 if halves and noise.sizes(columns)[1] > length else columns

    def room(self, columns: int) -> Room:
        """What a row holds that has so many columns when it is packed."""
        sizes = [noise.sizes(columns) for noise in self.noise]
        if self.layout == "encoder_decoder":
            return Room(max(inputs for inputs, _ in sizes), max(targets for _, targets in sizes))
        both = max(inputs + targets - 1 for inputs, targets in sizes)
        return Room(NO_LIMIT, NO_LIMIT, math.ceil(both / MULTIPLE) * MULTIPLE)

    def packed_spec(self, batch_size: int, columns: int) -> dict[str, ArraySpec]:
        """As `batch_spec`, from the columns of the packed rows."""
        room = self.room(columns)
        if self.layout == "decoder":
            return decoder_spec(batch_size, room.both, prefix=True)
        axes, spec = ("batch", "length"), {}
        for name, size in (("inputs", room.inputs), ("targets", room.targets)):
            for each in (name, f"{name}_segment_ids", f"{name}_positions"):
                spec[each] = ArraySpec((batch_size, size), "int32", axes)
        return spec | {
            "decoder_inputs": ArraySpec((batch_size, room.targets), "int32", axes),
            "loss_weights": ArraySpec((batch_size, room.targets), "float32", axes),
        }

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        return self.packed_spec(batch_size, self.packed_length(length))

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Corrupts every piece of packed rows and lays out inputs and targets."""
        rows, columns = packed["tokens"].shape
        room, kind_R = self.room(columns), self.kinds(rows, rng)
        pieces = take_apart(packed["tokens"], packed["segment_ids"])
        pieces, noise_P, spans_P = allot(pieces, rows, self.noise, kind_R, room)
        inputs, targets = self.corrupt(pieces, noise_P, spans_P, kind_R[pieces.rows_P], rng)
        if self.layout == "decoder":
            return _one_sequence(inputs, targets, (rows, room.both))
        batch = put_together(inputs, (rows, room.inputs), "inputs_")
        batch |= put_together(targets, (rows, room.targets), "targets_")
        shifted_BL = np.roll(batch["targets"], 1, axis=1)
        start = self.vocabulary.pad_id  # what T5's decoder reads first
        batch["decoder_inputs"] = np.where(batch["targets_positions"] == 0, start, shifted_BL).astype(np.int32)
        batch["loss_weights"] = (batch["targets_segment_ids"] > 0).astype(np.float32)
        return batch

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        if self.layout == "decoder":
            return decode(model, batch)
        inputs = batch["inputs"], batch["inputs_segment_ids"], batch["inputs_positions"]
        targets = batch["decoder_inputs"], batch["targets_segment_ids"], batch["targets_positions"]
        return model.encode_decode(inputs, targets)

    def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        return token_loss(logits, batch, self.z_loss, self.label_smoothing)


def _one_sequence(inputs: Pieces, targets: Pieces, shape: tuple[int, int]) -> Batch:
    """Inputs and targets one after another, each token predicting the next; only targets count."""
    both = join(inputs, targets)
    is_last_T, is_first_T = (np.zeros(len(both.tokens_T), bool) for _ in range(2))
    is_first_T[both.starts_P], is_last_T[both.starts_P + both.lengths_P - 1] = True, True
    read = Pieces(both.tokens_T[~is_last_T], both.lengths_P - 1, *both[2:])
    batch = put_together(read, shape)
    batch["targets"] = put_together(read._replace(tokens_T=both.tokens_T[~is_first_T]), shape)["tokens"]
    sizes_T = np.repeat(inputs.lengths_P, read.lengths_P).astype(np.int32)
    sizes_BL = put_together(read._replace(tokens_T=sizes_T), shape)["tokens"]
    real_BL = batch["segment_ids"] > 0
    batch["prefix_mask"] = real_BL & (batch["positions"] < sizes_BL)
    batch["loss_weights"] = (real_BL & (batch["positions"] >= sizes_BL - 1)).astype(np.float32)
    return batch


def with_ends(pieces: Pieces, last: int | None, first_P: np.ndarray | None = None) -> Pieces:
    """Pieces with the token `last` after each, and `first_P` (-1 for none) before."""
    before_P = np.zeros(len(pieces.lengths_P), bool) if first_P is None else first_P >= 0
    lengths_P = pieces.lengths_P + before_P + (last is not None)
    ends_P = np.cumsum(lengths_P)
    tokens_T, is_text_T = np.empty(int(lengths_P.sum()), np.int32), np.ones(int(lengths_P.sum()), bool)
    if last is not None:
        tokens_T[ends_P - 1], is_text_T[ends_P - 1] = last, False
    if before_P.any():
        starts_P = (ends_P - lengths_P)[before_P]
        tokens_T[starts_P], is_text_T[starts_P] = first_P[before_P], False
    tokens_T[is_text_T] = pieces.tokens_T
    return Pieces(tokens_T, lengths_P, *pieces[2:])


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpanCorruption(Denoising):
    """T5: spans are replaced by sentinels, and the targets are these sentinels, each followed by its span.

    Attributes:
        density: share of the tokens that is noise.
        mean_span: tokens of a span on average.
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        check_noise(self, self.density, self.mean_span)

    @property
    def noise(self) -> Sequence[Noise]:
        return [Noise(self.density, self.mean_span)]


def check_noise(objective: Objective, density: float, mean_span: float) -> None:
    """Raises `UserError` unless noise is a part of a text, in spans of a token or more."""
    kind = type(objective).__name__
    check(0 < density < 1, f"{kind}: a noise density must be between 0 and 1, got {density}")
    check(mean_span >= 1, f"{kind}: a mean span must be 1 or more, got {mean_span}")


# UL2, table 1 and section 3.1.2: regular, sequential (the last quarter) and extreme denoisers, all as likely.
UL2 = (
    ("R", 0.15, 3.0), ("R", 0.15, 8.0),
    ("S", 0.25, None),
    ("X", 0.5, 3.0), ("X", 0.5, 8.0), ("X", 0.15, 64.0), ("X", 0.5, 64.0),
)  # fmt: skip


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MixtureOfDenoisers(Denoising):
    """UL2: every row has one of several kinds of noise, and each input begins with a token for its mode.

    A row is as long for all kinds, so what fills it with one kind may leave room with another.

    Attributes:
        denoisers: mode, density and mean span of each; a mean span of None is one span at the end of the text. Modes
            have the last of the sentinels, in the order of the alphabet.
        rates: how likely each is; None for all alike.
    """

    sentinels: int = 103
    denoisers: Sequence[Sequence] = UL2
    rates: Sequence[float] | None = None

    def __post_init__(self):
        super().__post_init__()
        check(len(self.denoisers) > 0, "MixtureOfDenoisers.denoisers is empty")
        for each in self.denoisers:
            check(
                len(each) == 3 and isinstance(each[0], str),
                f"MixtureOfDenoisers.denoisers: write ('R', 0.15, 3.0) (mode, density, mean span), not {each!r}",
            )
            check_noise(self, each[1], math.inf if each[2] is None else each[2])
        check_shares("MixtureOfDenoisers.rates", self.rates, len(self.denoisers))

    @property
    def noise(self) -> Sequence[Noise]:
        modes = sorted({mode for mode, _, _ in self.denoisers}, reverse=True)
        return [
            Noise(density, math.inf if mean is None else mean, self.sentinels - 1 - modes.index(mode))
            for mode, density, mean in self.denoisers
        ]

    def kinds(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        rates = np.ones(len(self.denoisers)) if self.rates is None else np.array(self.rates, float)
        return rng.choice(len(rates), rows, p=rates / rates.sum())


def check_shares(name: str, shares: Sequence[float] | None, count: int) -> None:
    """Raises `UserError` unless there are `count` shares, none below 0 and not all 0; None will do."""
    right = shares is None or (len(shares) == count and min(shares) >= 0 and sum(shares) > 0)
    check(right, f"{name} must be {count} numbers of 0 or more, not all 0; got {shares!r}")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TextInfilling(SpanCorruption):
    """BART: each span becomes one mask, an empty span too, and the target is the whole text.

    Attributes:
        density: share of the tokens that is noise.
        mean_span: mean of the Poisson distribution of span lengths.
    """

    sentinels: int = 1
    density: float = 0.3

    @property
    def noise(self) -> Sequence[Noise]:
        return [Noise(self.density, self.mean_span, ends=False, whole=True)]

    def corrupt(self, pieces, noise_P, spans_P, kind_P, rng):
        is_mask_T, token_T = infilling_of(pieces.lengths_P, noise_P, spans_P, rng)
        # A mask may be the last place and have no token; what is looked up there is not used.
        tokens_T = np.append(pieces.tokens_T, 0)[token_T]
        tokens_T = np.where(is_mask_T, self.vocabulary.sentinel(0), tokens_T).astype(np.int32)
        return Pieces(tokens_T, pieces.lengths_P - noise_P + spans_P, *pieces[2:]), pieces
