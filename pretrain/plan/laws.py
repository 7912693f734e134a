"""Scaling laws: what loss to expect of N parameters and D tokens, and how to divide compute between them.

Published laws are kept here as data. `ParametricLaw` is L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022,
"Training compute-optimal large language models", section 3.3); `AllocationLaw` knows only the best N for a compute
budget (their sections 3.1 and 3.2; Kaplan et al. 2020). Compute is C = 6 N D unless said otherwise.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from pretrain.core.errors import check
from pretrain.plan.intervals import Resampled, expanded_percentiles

FLOPS_PER_PARAMETER_TOKEN = 6  # forward 2, backward 4
PETAFLOP_DAY = 1e15 * 86_400


@dataclasses.dataclass(frozen=True)
class Optimum:
    """How to spend a budget.

    Attributes:
        params, tokens: N and D.
        flops: C = 6 N D.
        loss: predicted loss in nats a token, or None where the law does not say.
    """

    params: float
    tokens: float
    loss: float | None

    @property
    def flops(self) -> float:
        """Training compute."""
        return FLOPS_PER_PARAMETER_TOKEN * self.params * self.tokens

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.tokens / self.params

    def to_json(self) -> dict[str, float | None]:
        """The division as plain values."""
        return {**dataclasses.asdict(self), "tokens_per_param": self.tokens_per_param}


@dataclasses.dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token; `resampled` tells how sure a fitted one is."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str = "this fit"
    resampled: Resampled | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        for name in ("A", "B", "alpha", "beta"):
            check(getattr(self, name) > 0, f"a scaling law needs {name} > 0, got {getattr(self, name)!r}")

    def loss(self, params, tokens):
        """Predicted loss; numbers or arrays."""
        return self.E + self.A / np.power(params, self.alpha) + self.B / np.power(tokens, self.beta)

    def loss_interval(self, params: float, tokens: float, confidence: float = 0.95) -> tuple[float, float] | None:
        """Where the law's loss lies (a single run scatters about it); None for a law without bootstrap samples."""
        if self.resampled is None:
            return None
        e, a, b, alpha, beta = self.resampled.values.T
        return expanded_percentiles(e + a * params**-alpha + b * tokens**-beta, confidence, self.resampled.freedom)

    @property
    def params_exponent(self) -> float:
        """a in N_opt ~ C^a (equation 4)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def tokens_exponent(self) -> float:
        """b in D_opt ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    def optimum(self, flops: float) -> Optimum:
        """The best N and D for a compute budget, in closed form (equation 4)."""
        _check_positive("compute", flops)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = flops / FLOPS_PER_PARAMETER_TOKEN
        params = scale * product**self.params_exponent
        tokens = product / params
        return Optimum(params, tokens, float(self.loss(params, tokens)))


@dataclasses.dataclass(frozen=True)
class AllocationLaw:
    """N_opt = coefficient * C^exponent, and D_opt = C / (6 N_opt)."""

    coefficient: float
    exponent: float
    source: str
    loss_of: Callable[[float], float] | None = None

    @property
    def params_exponent(self) -> float:
        """a in N_opt ~ C^a."""
        return self.exponent

    @property
    def tokens_exponent(self) -> float:
        """b in D_opt ~ C^b."""
        return 1 - self.exponent

    def optimum(self, flops: float) -> Optimum:
        """The best N and D for a compute budget."""
        _check_positive("compute", flops)
        params = self.coefficient * flops**self.exponent
        tokens = flops / (FLOPS_PER_PARAMETER_TOKEN * params)
        return Optimum(params, tokens, None if self.loss_of is None else self.loss_of(flops))


def _through(first: tuple[float, float], last: tuple[float, float], source: str) -> AllocationLaw:
    """The power law through two published (compute, best N) pairs."""
    exponent = math.log(last[1] / first[1]) / math.log(last[0] / first[0])
    return AllocationLaw(first[1] / first[0] ** exponent, exponent, source)


# The ends of Hoffmann et al.'s tables 3 and A3 carry more digits than the exponents that they print (.50 and .49).
# Table 3 prints 5 % more tokens for 67B than its FLOPs pay for: 2 % below the ends, every entry is within 5 %.
# Approach 3 uses the digits of the paper's source (alpha .3392, beta .2849); the rounded ones miss its own optimum.
LAWS: dict[str, ParametricLaw | AllocationLaw] = {
    "chinchilla_1": _through((1.92e19, 3.92e8), (1.30e28, 9.8e12), "Hoffmann et al. 2022, approach 1 (table 3)"),
    "chinchilla_2": _through((1.84e19, 4e8), (1.75e28, 1e13), "Hoffmann et al. 2022, approach 2 (table A3)"),
    "chinchilla_3": ParametricLaw(1.6934, 406.4, 410.7, 0.3392, 0.2849, "Hoffmann et al. 2022, approach 3"),
    "besiroglu": ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, approach 3 corrected"),
    "kaplan": AllocationLaw(
        1.3e9 / PETAFLOP_DAY**0.73,
        0.73,
        "Kaplan et al. 2020, equation 6.1 (N without embeddings)",
        lambda flops: (3.1e8 * PETAFLOP_DAY / flops) ** 0.050,
    ),
}
DEFAULT_LAW = "besiroglu"


@dataclasses.dataclass(frozen=True)
class RepeatedDataLaw:
    """Loss when `unique` tokens are seen for several epochs (Muennighoff et al. 2023, equation 5 and appendix A).

    Repeats are worth ever less: D' = U + U R* (1 - exp(-R / R*)) for R repeats, and likewise for parameters beyond
    those that the unique tokens call for.
    """

    law: ParametricLaw = ParametricLaw(1.87, 521.0, 1488.0, 0.353, 0.353, "Muennighoff et al. 2023 (C4)")
    half_life_tokens: float = 15.39
    half_life_params: float = 5.31

    def effective_tokens(self, tokens: float, unique: float) -> float:
        """Fresh tokens that are worth as much as `tokens` drawn from `unique`."""
        seen = min(tokens, unique)
        return seen + seen * self.half_life_tokens * -math.expm1(-(tokens / seen - 1) / self.half_life_tokens)

    def effective_params(self, params: float, unique: float) -> float:
        """Parameters that count, of those beyond what `unique` tokens call for."""
        called_for = min(self._params_for(unique), params)
        excess = params / called_for - 1
        return called_for + called_for * self.half_life_params * -math.expm1(-excess / self.half_life_params)

    def loss(self, params: float, tokens: float, unique: float) -> float:
        """Predicted loss in nats a token."""
        return float(self.law.loss(self.effective_params(params, unique), self.effective_tokens(tokens, unique)))

    def optimum(self, flops: float, unique: float) -> Optimum:
        """The best N and D for a budget when no more than `unique` tokens exist; D / unique is the epochs."""
        from scipy import optimize  # here, as in `core.sound`: it takes long to import

        _check_positive("compute", flops)
        _check_positive("unique tokens", unique)
        product = flops / FLOPS_PER_PARAMETER_TOKEN
        start = math.log(self.law.optimum(flops).params)
        found = optimize.minimize_scalar(
            lambda log_n: self.loss(math.exp(log_n), product / math.exp(log_n), unique),
            bounds=(start - 8, start + 8),
            method="bounded",
            options={"xatol": 1e-9},
        )
        params = math.exp(found.x)
        return Optimum(params, product / params, float(found.fun))

    def _params_for(self, tokens: float) -> float:
        """The compute-optimal N for D tokens: where both terms' marginal gains per FLOP are equal."""
        law = self.law
        return (law.alpha * law.A / (law.beta * law.B) * tokens**law.beta) ** (1 / law.alpha)


def inference_aware(law: ParametricLaw, flops: float, inference_tokens: float) -> Optimum:
    """The model with the loss that `flops` of training could buy, cheapest over training and its whole life.

    Minimises 6 N D + 2 N D_inference at that loss (Sardana et al. 2023, equation 2): a heavily used model should be
    smaller and trained longer.

    Args:
        law: the law of the loss.
        flops: training budget that sets the quality.
        inference_tokens: tokens that the model will read and write in its life.
    """
    from scipy import optimize

    check(inference_tokens >= 0, f"inference tokens must be >= 0, got {inference_tokens:g}")
    best = law.optimum(flops)

    def tokens_of(params: float) -> float:
        left = best.loss - law.E - law.A / params**law.alpha
        return math.inf if left <= 0 else (law.B / left) ** (1 / law.beta)

    def life(log_n: float) -> float:
        params = math.exp(log_n)
        return math.log(params) + math.log(FLOPS_PER_PARAMETER_TOKEN * tokens_of(params) + 2 * inference_tokens)

    smallest = (law.A / (best.loss - law.E)) ** (1 / law.alpha)  # this many reach the loss with endless data only
    bounds = (math.log(smallest * (1 + 1e-9)), math.log(best.params))
    found = optimize.minimize_scalar(life, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    params = best.params if inference_tokens == 0 else math.exp(found.x)
    return Optimum(params, tokens_of(params), best.loss)


def _check_positive(what: str, value: float) -> None:
    check(value > 0 and math.isfinite(value), f"{what} must be a positive number, got {value!r}")
