"""What a model answers to questions: log-probabilities of every choice, and the greedy continuation, in batches.

A prompt is read once into a key-value cache, and all choices and the greedy answer go on from there. Prompts of a batch
have one length, and one compilation serves all lengths of a bucket.

Axes: B batch · L prompt · C choices · A answer · D embed · V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pretrain.evaluate.tasks import CHOICES, Question
from pretrain.models.functional import FunctionalModel, Params
from pretrain.sharding.rules import named_sharding, use_mesh

PROMPT_BUCKET, ANSWER_BUCKET = 64, 8  # lengths are padded to multiples of these, so that few are compiled


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model made of a question.

    Attributes:
        log_probs: natural log of the probability of each token of each choice, float32 [A] each, the right one first.
        hits_A: where the right answer's token is the likeliest one after those before it, bool.
        greedy_A: int32, as many tokens as the right answer has, each the likeliest after the model's own.
    """

    log_probs: tuple[np.ndarray, ...]
    hits_A: np.ndarray
    greedy_A: np.ndarray


def answer_questions(
    questions: Sequence[Question],
    model: FunctionalModel,
    params: Params,
    *,
    vocab_size: int,
    mesh: Mesh | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda questions: None,
) -> list[Answer]:
    """An answer to each question, in their order; rows of a batch do not see each other.

    Args:
        questions: of any lengths; each must fit the model's context (`Question.length`).
        model, params: a causal model with `decode`, `head` and `init_cache`.
        vocab_size: tokens of the tokenizer; probabilities are among these, without the rows that pad the vocabulary.
        mesh: where `params` lie; batches are split over it.
        batch_size: questions a step.
        on_batch: called with the number of questions answered, for progress.
    """
    found: dict[int, Answer] = {}
    width = _padded(max((len(c) for q in questions for c in q.choices), default=1), ANSWER_BUCKET)
    for length, group in _by_length(questions).items():
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            prompts_BL, choices_CBA = _batch([questions[index] for index in indices], batch_size, width)
            prompts_BL = _place(prompts_BL, ("batch", None), mesh)
            choices_CBA = _place(choices_CBA, (None, "batch", None), mesh)
            with use_mesh(mesh):
                results = _answer(model, params, prompts_BL, choices_CBA, jnp.int32(length), vocab_size)
            taken_CBA, hits_BA, greedy_AB = jax.device_get(results)
            for row, index in enumerate(indices):
                found[index] = _unpadded(questions[index], taken_CBA[:, row], hits_BA[row], greedy_AB[:, row])
            on_batch(len(indices))
    return [found[index] for index in range(len(questions))]


@functools.partial(jax.jit, static_argnames=("model", "vocab_size"))
def _answer(model: FunctionalModel, params: Params, prompts_BL, choices_CBA, length, vocab_size: int):
    """Log-probabilities [C, B, A], hits of the first choice [B, A] and greedy tokens [A, B].

    All prompts have `length` tokens. Slots of the cache from there on hold their padding; each is written anew before a
    position can see it. What lies beyond a choice's own length is garbage.
    """
    module = model.module(params)
    _, batch, width = choices_CBA.shape

    def logits(hidden_BLD):
        return module.logits(hidden_BLD)[..., :vocab_size]

    cache = module.init_cache(batch, prompts_BL.shape[1] + width)
    hidden_BLD, cache = module.decode(prompts_BL, cache, jnp.int32(0))
    first_B1V = logits(jax.lax.dynamic_slice_in_dim(hidden_BLD, length - 1, 1, axis=1))

    def read(choice_BA):
        hidden_BAD, _ = module.decode(choice_BA, cache, length)
        after_BAV = jnp.concatenate([first_B1V, logits(hidden_BAD[:, :-1])], axis=1)
        taken_BA = jnp.take_along_axis(after_BAV, choice_BA[..., None], axis=2)[..., 0]
        return taken_BA - jax.nn.logsumexp(after_BAV, axis=2), taken_BA >= jnp.max(after_BAV, axis=2)

    def extend(carry, _):
        last_B, offset, cache = carry
        hidden_B1D, cache = module.decode(last_B[:, None], cache, offset)
        next_B = jnp.argmax(logits(hidden_B1D)[:, 0], axis=1).astype(jnp.int32)
        return (next_B, offset + 1, cache), last_B

    start = (jnp.argmax(first_B1V[:, 0], axis=1).astype(jnp.int32), length, cache)
    _, greedy_AB = jax.lax.scan(extend, start, length=width)
    taken_CBA, hits_CBA = jax.lax.map(read, choices_CBA)
    return taken_CBA, hits_CBA[0], greedy_AB


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _by_length(questions: Iterable[Question]) -> dict[int, list[int]]:
    """Indices of the questions by length of their prompts, the shortest first."""
    groups: dict[int, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(len(question.prompt_L), []).append(index)
    return dict(sorted(groups.items()))


def _batch(questions: Sequence[Question], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [B, L] and choices [C, B, A] with zeros around them."""
    length = len(questions[0].prompt_L)
    prompts_BL = np.zeros((rows, _padded(length, PROMPT_BUCKET)), np.int32)
    choices_CBA = np.zeros((CHOICES, rows, width), np.int32)
    for row, question in enumerate(questions):
        prompts_BL[row, :length] = question.prompt_L
        for number, choice in enumerate(question.choices):
            choices_CBA[number, row, : len(choice)] = choice
    return prompts_BL, choices_CBA


def _place(array: np.ndarray, axes: tuple[str | None, ...], mesh: Mesh | None) -> jax.Array | np.ndarray:
    """The array on the mesh, its rows split where they divide."""
    return array if mesh is None else jax.device_put(array, named_sharding(axes, array.shape, mesh))


def _unpadded(question: Question, log_probs_CA: np.ndarray, hits_A: np.ndarray, greedy_A: np.ndarray) -> Answer:
    size = len(question.answer_L)
    rows = zip(log_probs_CA, question.choices, strict=True)
    return Answer(tuple(row[: len(choice)] for row, choice in rows), hits_A[:size], greedy_A[:size])
