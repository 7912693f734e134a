"""Which share of the training stream each source gets: fixed, by size, by temperature, by epochs, and over time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Phase:
    """From row `row` of the stream on, sources advance in proportion to `shares`, measured in `by`."""

    row: int
    by: str
    shares: dict[str, float]

    def to_json(self) -> dict:
        return asdict(self)


@gin.configurable
@dataclass(frozen=True)
class MixtureConfig:
    """What share of the stream each source gets. A source with weight 0, or left out of `weights`, is not read.

    Attributes:
        weights: source -> share, on any positive scale. With None for this, `temperature` and `epochs`, a cached seqio
            mixture keeps its own rates, and sources of a corpus are read by size.
        by: what the shares count, "tokens" or "examples"; None is "examples" for the rates of a seqio mixture, as
            there, and "tokens" otherwise.
        temperature: shares are size ** (1 / temperature): 1 is by size (mT5, arXiv:2010.11934, uses 1 / 0.3).
        epochs: source -> how often it is read by the time the others have been read as often as asked; in place of
            weights. With `stop`, exactly so often.
        schedule: (fraction of training, weights) pairs in order; from that fraction on the weights replace the ones
            above, e.g. `((0.9, {"books": 3, "web": 1}),)` for the last tenth.
        stop: "never" starts every source again when it has been read; "first" ends the stream before any source is read
            more often than once (or than `epochs` asks), "all" as soon as every source has been.
    """

    weights: Weights | None = None
    by: str | None = None
    temperature: float | None = None
    epochs: Weights | None = None
    schedule: Sequence[Sequence[object]] = ()
    stop: str = "never"

    def __post_init__(self):
        check_fields(self)
        check(self.by in (None, "tokens", "examples"), f"MixtureConfig.by = {self.by!r}: 'tokens' or 'examples'")
        check(
            self.temperature is None or self.temperature > 0,
            f"MixtureConfig.temperature = {self.temperature} must be positive",
        )
        check(self.stop in ("never", "first", "all"), f"MixtureConfig.stop = {self.stop!r}: 'never', 'first' or 'all'")
        pairs = all(len(p) == 2 and isinstance(p[0], int | float) and isinstance(p[1], Mapping) for p in self.schedule)
        check(pairs, "MixtureConfig.schedule must be pairs of a fraction of training and weights")
        given = [name for name in ("weights", "temperature", "epochs") if getattr(self, name) is not None]
        check(len(given) <= 1, f"MixtureConfig: give one of {' and '.join(given)}, not both")
        for name, weights in (
            ("weights", self.weights),
            ("epochs", self.epochs),
            *(("schedule", w) for _, w in self.schedule),
        ):
            _check_weights(name, weights)
        starts = [fraction for fraction, _ in self.schedule]
        check(
            all(0 < fraction < 1 for fraction in starts) and starts == sorted(set(starts)),
            f"MixtureConfig.schedule begins its phases at {starts}: give rising fractions between 0 and 1",
        )

    @classmethod
    def whole_epochs(cls, epochs: Weights) -> "MixtureConfig":
        """Every source exactly so often and then the end, whatever gin binds for the training's mixture."""
        return cls(weights=None, by=None, temperature=None, epochs=epochs, schedule=(), stop="all")

    def phases(
        self, costs: Mapping[str, Mapping[str, float]], total_rows: int | None, rates: Weights | None = None
    ) -> list[Phase]:
        """The phases of the stream.

        Args:
            costs: source -> {"tokens": of an epoch, "examples": of an epoch}.
            total_rows: rows of the whole training, which a schedule needs.
            rates: of a cached seqio mixture.

        Raises:
            UserError: an unknown source, or a schedule without `total_rows`.
        """
        own = self.weights is None and self.temperature is None and self.epochs is None and rates is not None
        by = self.by or ("examples" if own else "tokens")
        sizes = {source: cost[by] for source, cost in costs.items()}
        first = {source: rate for source, rate in rates.items() if source in sizes} if own else self.weights
        if self.epochs is not None:
            _check_known("epochs", self.epochs, sizes)
            first = {source: times * sizes[source] for source, times in self.epochs.items()}
        elif first is None:
            first = {source: size ** (1 / (self.temperature or 1.0)) for source, size in sizes.items()}
        check(not self.schedule or total_rows is not None, "MixtureConfig.schedule needs the number of training steps")
        starts = [(0, first), *((round(fraction * total_rows), weights) for fraction, weights in self.schedule)]
        return [Phase(row, by, _shares(weights, sizes)) for row, weights in starts]


def _check_weights(name: str, weights: Weights | None) -> None:
    if weights is None:
        return
    for source, weight in weights.items():
        check(0 <= weight < float("inf"), f"MixtureConfig.{name}: {source} has weight {weight}; it must be 0 or more")
    check(sum(weights.values()) > 0, f"MixtureConfig.{name}: every weight is 0, so nothing would be read")


def _check_known(name: str, weights: Weights, sizes: Mapping[str, float]) -> None:
    unknown = sorted(set(weights) - set(sizes))
    check(
        not unknown, f"MixtureConfig.{name}: no source {', '.join(unknown)}; the cache has {', '.join(sorted(sizes))}"
    )


def _shares(weights: Weights, sizes: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that add up to 1, without the sources that are not read, by name."""
    _check_known("weights", weights, sizes)
    total = sum(weights[source] for source in sorted(weights))
    return {source: weights[source] / total for source in sorted(weights) if weights[source] > 0}
