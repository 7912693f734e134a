"""The mixture plan: from what each source holds and how it is to be weighted, how often each will be seen.

Repeating data up to four times is nearly as good as new data (Muennighoff et al., "Scaling data-constrained language
models", 2023); beyond that the plan warns. Shares by size to the power 1 / temperature are mT5's (Xue et al., 2021).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

MAX_EPOCHS = 4


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """How sources are to be mixed in training. Sources that are not named keep their natural share.

    Attributes:
        tokens: the budget of training; None: every source once, times its up-weighting.
        epochs: {source: how often it is seen}; the rest of the budget goes to the others.
        weights: {source: share of that rest, on any scale}; a source left out of it gets none.
        upweight: {source: factor on its share by size}.
        temperature: shares by size go by size ** (1 / temperature); above 1, small sources get more.
        bytes_per_token: to estimate tokens, where they are not counted.
    """

    tokens: int | None = None
    epochs: Mapping[str, float] | None = None
    weights: Mapping[str, float] | None = None
    upweight: Mapping[str, float] | None = None
    temperature: float = 1.0
    bytes_per_token: float = 4.0

    def __post_init__(self):
        check_fields(self)
        for name in ("tokens", "temperature", "bytes_per_token"):
            value = getattr(self, name)
            check(value is None or value > 0, f"MixturePlan.{name} must be positive, not {value}")
        for name in ("epochs", "weights", "upweight"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, dict(values))
                below = [source for source, value in values.items() if not value >= 0]
                check(not below, f"MixturePlan.{name}: {below[:1]} must be 0 or more")
        given = [name for name in ("weights", "upweight") if getattr(self, name)]
        check(len(given) < 2, "MixturePlan: give weights or upweight, not both")


class Share(NamedTuple):
    """One source's part in the plan.

    Attributes:
        tokens: what it holds.
        share: of all that is seen.
        seen: tokens that training draws from it.
        epochs: how often each of its tokens is seen, on average.
    """

    source: str
    tokens: int
    share: float
    seen: int
    epochs: float


def mixture_plan(tokens: Mapping[str, int], plan: MixturePlan) -> list[Share]:
    """The part of each source, by name.

    Args:
        tokens: {source: tokens it holds}.
        plan: how they are to be mixed.

    Raises:
        UserError: an unknown source, or epochs that ask for more than the budget.
    """
    for name in ("epochs", "weights", "upweight"):
        unknown = sorted(set(getattr(plan, name) or ()) - set(tokens))
        check(not unknown, f"MixturePlan.{name}: no source {unknown[:1]}; there are {', '.join(sorted(tokens))}")
    seen = {source: times * tokens[source] for source, times in (plan.epochs or {}).items()}
    fixed = sum(seen.values())
    others = sorted(source for source, size in tokens.items() if source not in seen and size)
    upweight = plan.upweight or {}
    budget = plan.tokens or fixed + sum(tokens[source] * upweight.get(source, 1.0) for source in others)
    check(fixed <= budget, f"MixturePlan.epochs ask for {fixed:,.0f} tokens, more than MixturePlan.tokens = {budget:,}")
    if plan.weights is None:
        by_size = {source: tokens[source] ** (1 / plan.temperature) for source in others}
        weight = {source: size * upweight.get(source, 1.0) for source, size in by_size.items()}
    else:
        weight = {source: plan.weights.get(source, 0.0) for source in others}
    total = sum(weight.values())
    check(total > 0 or fixed == budget or not others, "MixturePlan: the weights of all sources are 0")
    seen |= {source: (budget - fixed) * weight[source] / total for source in others if total}
    everything = sum(seen.values())
    return [
        Share(
            source,
            tokens[source],
            seen.get(source, 0.0) / everything if everything else 0.0,
            round(seen.get(source, 0.0)),
            seen.get(source, 0.0) / tokens[source] if tokens[source] else 0.0,
        )
        for source in sorted(tokens)
    ]


def warnings(shares: list[Share]) -> list[str]:
    """What is likely a mistake, though it is what the plan asks for."""
    often = [share for share in shares if share.epochs > MAX_EPOCHS]
    return [
        f"{share.source} will be seen {share.epochs:.1f} times; beyond {MAX_EPOCHS} epochs more data or less weight is "
        "better than repetition"
        for share in often
    ]


def lines(shares: list[Share]) -> list[str]:
    """The plan as a table for a terminal."""
    width = max([len("source"), *(len(share.source) for share in shares)])
    rows = [f"{'source':<{width}}  {'tokens':>15}  {'share':>7}  {'seen':>17}  epochs"]
    for share in shares:
        part, times = f"{100 * share.share:.1f} %", f"{share.epochs:.2f}"
        rows.append(f"{share.source:<{width}}  {share.tokens:>15,}  {part:>7}  {share.seen:>17,}  {times:>6}")
    return rows
