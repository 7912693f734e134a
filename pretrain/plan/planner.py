"""Where to spend a budget: parameters, tokens, shape, batch and learning rate, under each published law and one's own.

The budget is given as compute, as tokens, as parameters, or as chips and days. Batch size and learning rate follow
DeepSeek LLM (DeepSeek-AI 2024, section 3.1, fitted at 3e17 … 2e19 FLOPs, confirmed at 1e20); vocabulary follows Tao et
al. 2024 (approach 1); repeated data follow Muennighoff et al. 2023, heavily used models Sardana et al. 2023.
"""

import dataclasses
import math

from pretrain.core.errors import check
from pretrain.models.config import TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.laws import (
    DEFAULT_LAW,
    FLOPS_PER_PARAMETER_TOKEN,
    LAWS,
    AllocationLaw,
    Optimum,
    ParametricLaw,
    RepeatedDataLaw,
    inference_aware,
)
from pretrain.plan.shapes import count_parameters, shape_for

HEAD_DIM = 128
LENGTH = 4096
FAR_OFF = 0.2, 500.0  # tokens per parameter outside of this deserve a word: 100 times under, 25 times over Chinchilla's
MANY_EPOCHS = 4  # beyond these, repeated tokens are worth much less than fresh ones (Muennighoff et al. 2023)
VOCABULARY = 1024, 262_144


@dataclasses.dataclass(frozen=True)
class Plan:
    """An answer.

    Attributes:
        flops: the budget.
        optima: {law: how it would divide the budget}.
        chosen: the division to follow, from `law`.
        law: the name of the law that was chosen.
        loss_interval: least and greatest loss that the published parametric laws predict for the chosen N and D; for a
            law of the user's own, whose data they never saw, its 95 % interval, or None for one without.
        shape: a model of about the chosen size.
        batch_tokens, learning_rate: by DeepSeek's laws.
        serving: the cheapest model of equal quality over its life, when a demand was given.
        repeated: the division when only so many unique tokens exist, with its epochs.
    """

    flops: float
    optima: dict[str, Optimum]
    chosen: Optimum
    law: str
    loss_interval: tuple[float, float] | None
    shape: TransformerConfig
    batch_tokens: int
    learning_rate: float
    serving: Optimum | None = None
    repeated: Optimum | None = None
    epochs: float | None = None

    def to_json(self) -> dict:
        """The plan as plain values."""
        shape = {name: getattr(self.shape, name) for name in SHAPE_FIELDS}
        return {
            "flops": self.flops,
            "law": self.law,
            **self.chosen.to_json(),
            "loss_interval": self.loss_interval and list(self.loss_interval),
            "laws": {name: optimum.to_json() for name, optimum in self.optima.items()},
            "shape": {**shape, "parameters": count_parameters(self.shape).total},
            "flops_per_token": count_flops(self.shape, LENGTH).training,
            "batch_tokens": self.batch_tokens,
            "learning_rate": self.learning_rate,
            "inference_aware": self.serving and self.serving.to_json(),
            "repeated_data": self.repeated and {**self.repeated.to_json(), "epochs": self.epochs},
        }


SHAPE_FIELDS = ("num_layers", "embed_dim", "num_heads", "kv_heads", "head_dim", "mlp_dim", "vocab_size")


def make_plan(
    *,
    compute: float | None = None,
    tokens: float | None = None,
    params: float | None = None,
    law: str = DEFAULT_LAW,
    own: ParametricLaw | None = None,
    inference_tokens: float | None = None,
    unique_tokens: float | None = None,
) -> Plan:
    """Plans a run for one of `compute`, `tokens` or `params`; two of tokens and params fix the run, and it is judged.

    Args:
        compute, tokens, params: the budget.
        law: which of `LAWS`, or "own".
        own: a law fitted to the user's own runs; it becomes the choice when it is given.
        inference_tokens: what the model will read and write in its life.
        unique_tokens: how much fresh data there is.

    Raises:
        UserError: no budget, or one too many.
    """
    laws = {**LAWS, **({"own": own} if own else {})}
    law = "own" if own else law
    check(law in laws, f"no law {law!r}: choose one of {', '.join(laws)}")
    fixed = params is not None and tokens is not None
    check(
        (compute is None) != (tokens is None and params is None),
        "give one budget: --compute, --tokens, --params, or --topology with --days; --tokens and --params go together",
    )
    if fixed:
        check(params > 0 and tokens > 0, "--params and --tokens must be above 0")
        compute = FLOPS_PER_PARAMETER_TOKEN * params * tokens
    elif compute is None:
        compute = _compute_for(laws[law], *(("tokens", tokens) if params is None else ("params", params)))
    optima = {name: each.optimum(compute) for name, each in laws.items()}
    chosen = _fixed_optimum(laws[law], params, tokens) if fixed else optima[law]
    shape = shape_for(chosen.params, _kind(compute, chosen.params), HEAD_DIM if chosen.params > 5e7 else 32)
    published = [each for each in LAWS.values() if isinstance(each, ParametricLaw)]
    predicted = [float(each.loss(chosen.params, chosen.tokens)) for each in published]
    interval = own.loss_interval(chosen.params, chosen.tokens) if own else (min(predicted), max(predicted))
    parametric_law = laws[law] if isinstance(laws[law], ParametricLaw) else LAWS[DEFAULT_LAW]
    repeated = RepeatedDataLaw().optimum(compute, unique_tokens) if unique_tokens else None
    return Plan(
        compute, optima, chosen, law, interval, shape, _batch_tokens(compute), _learning_rate(compute),
        inference_aware(parametric_law, compute, inference_tokens) if inference_tokens else None,
        repeated, repeated.tokens / unique_tokens if repeated else None,
    )  # fmt: skip


def _fixed_optimum(law: ParametricLaw | AllocationLaw, params: float, tokens: float) -> Optimum:
    loss = float(law.loss(params, tokens)) if isinstance(law, ParametricLaw) else None
    return Optimum(params, tokens, loss)


def _compute_for(law: ParametricLaw | AllocationLaw, what: str, wanted: float) -> float:
    """The budget whose optimum has so many tokens or parameters."""
    from scipy import optimize  # here, as in `core.sound`: it takes long to import

    check(wanted > 0 and math.isfinite(wanted), f"{what} must be a positive number, got {wanted!r}")
    gap = lambda log_c: math.log(getattr(law.optimum(math.exp(log_c)), what) / wanted)  # noqa: E731
    least, most = math.log(1e6), math.log(1e40)
    check(gap(least) <= 0 <= gap(most), f"{what}: {wanted:.3g} is the optimum of no budget from 1e6 to 1e40 FLOPs")
    return math.exp(optimize.brentq(gap, least, most, xtol=1e-12))


def _batch_tokens(flops: float) -> int:
    """Tokens a step: 0.2920 C^0.3271."""
    return max(1024, round(0.2920 * flops**0.3271))


def _learning_rate(flops: float) -> float:
    """Peak learning rate of AdamW: 0.3118 C^-0.1250."""
    return 0.3118 * flops**-0.1250


def _kind(flops: float, params: float) -> TransformerConfig:
    """A decoder as they are built today, with the vocabulary that its compute calls for."""
    embed = 128 * max(1.0, (params / 12 / 40 / 128**2) ** 0.4)  # roughly; only the vocabulary depends on it
    vocabulary = min(max(0.20 * flops**0.42 / embed, VOCABULARY[0]), VOCABULARY[1])
    return TransformerConfig(
        vocab_size=max(1024, round(vocabulary / 1024) * 1024), embed_dim=1024, num_heads=8, kv_heads=2,
        mlp_dim=2736, max_length=LENGTH, tie_embeddings=params < 3e9,
    )  # fmt: skip


def ratio_warning(params: float, tokens: float, unique: float | None = None) -> str | None:
    """One line when a run's tokens per parameter are far from where laws and practice lie, or None."""
    ratio = tokens / params
    low, high = FAR_OFF
    if ratio < low:
        best = LAWS[DEFAULT_LAW].optimum(FLOPS_PER_PARAMETER_TOKEN * params * tokens)
        return (
            f"{ratio:.2g} tokens per parameter: for this compute {best.params:.2g} parameters on {best.tokens:.2g} "
            "tokens would be better; see `pretrain plan`"
        )
    if ratio > high:
        return f"{ratio:,.0f} tokens per parameter: a larger model would learn more from this data; see `pretrain plan`"
    if unique is not None and tokens > MANY_EPOCHS * unique:
        return f"every token is seen {tokens / unique:.1f} times; beyond {MANY_EPOCHS} times repeats teach little"
    return None
