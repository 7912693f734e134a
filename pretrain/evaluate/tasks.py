"""Questions with known answers, made from a seed: copying, arithmetic and strings, each in several sizes.

They measure what a model does in its context, not what it remembers, so nothing is downloaded and nothing can have
leaked. Induction: Olsson et al. 2022 (arXiv:2209.11895). Few-shot arithmetic and letters: Brown et al. 2020, section
3.9; Wei et al. 2022 (arXiv:2206.07682). Wrong choices differ from the right answer in one unit (token, letter, digit or
word) for one that the prompt holds too, so neither form nor what was seen before tells them apart. Axes: L length.
"""

import abc
import dataclasses
import functools
import string
from collections.abc import Callable, Sequence

import numpy as np

from pretrain.core.errors import UserError
from pretrain.core.rng import host_rng
from pretrain.data.tokenizers import Tokenizer

SHOTS = 3  # solved examples before a question
CHOICES = 4
CUE = 4  # tokens or words of a repeated sequence that are given, before the model goes on
TOKENS, WORDS = 24, 16  # length of the sequences that repeat
LETTERS, DIGITS = tuple(string.ascii_lowercase), tuple(string.digits)
_COMMON = """
able area back base best bird blue boat body book call card city cold dark data deep door east face farm fast fire
fish food form free game gold good hair half hand hard head high hill home hope hour idea iron king lake land late
left life line list long main mark mind moon name near news north note open page park part path plan play rain read
rest rich ring road rock room rule salt same sand ship shop side silk size snow song south star step talk team term
text time town tree type user view wall warm west wide wind wood word work year young
"""
COMMON_WORDS = tuple(_COMMON.split())


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as token ids.

    Attributes:
        prompt_L: int32, the start token included.
        choices: answers, int32 [L] each, the right one first; the end of the line is part of them where there is one,
            so that a longer answer is a wrong one.
        answer_bytes: UTF-8 length of the right answer.
    """

    prompt_L: np.ndarray
    choices: tuple[np.ndarray, ...]
    answer_bytes: int

    @property
    def answer_L(self) -> np.ndarray:
        """The right answer."""
        return self.choices[0]

    @property
    def length(self) -> int:
        """Tokens that a model reads to score the longest choice: all but its last."""
        return len(self.prompt_L) + max(map(len, self.choices)) - 1


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """A kind of question.

    Attributes:
        name: in files and on the command line.
        title: over a plot.
        sizes: how long answers are, in the task's own units (tokens, letters, words, digits of a summand).
    """

    name: str
    title: str
    sizes: tuple[int, ...]

    @abc.abstractmethod
    def _write(self, rng: np.random.Generator, size: int, tokenizer: Tokenizer) -> Question: ...

    def questions(self, size: int, count: int, tokenizer: Tokenizer, seed: int = 0) -> list[Question]:
        """`count` questions, a function of the arguments alone."""
        rng = host_rng(seed, f"emergence/{self.name}", size)
        return [self._write(rng, size, tokenizer) for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class TokenInduction(Task):
    """A random sequence of different tokens, then CUE of them again: what follows?"""

    def _write(self, rng, size, tokenizer):
        sequence = rng.choice(text_tokens(tokenizer), TOKENS, replace=False).tolist()
        start = int(rng.integers(TOKENS - CUE - size + 1))
        cue, answer = sequence[start : start + CUE], sequence[start + CUE : start + CUE + size]
        choices = [answer, *near_misses(rng, answer, sequence)]
        prompt = np.array([tokenizer.bos_id, *sequence, *cue], np.int32)
        size_in_bytes = sum(len(tokenizer.decode([token]).encode()) for token in answer)
        return Question(prompt, tuple(np.array(choice, np.int32) for choice in choices), size_in_bytes)


@dataclasses.dataclass(frozen=True)
class WordInduction(Task):
    """As `TokenInduction`, with English words."""

    def _write(self, rng, size, tokenizer):
        words = _draw(rng, COMMON_WORDS, WORDS)
        start = int(rng.integers(WORDS - CUE - size + 1))
        cue, answer = words[start : start + CUE], words[start + CUE : start + CUE + size]
        spell = lambda each: "".join(f" {word}" for word in each)  # noqa: E731
        choices = [spell(choice) for choice in (answer, *near_misses(rng, answer, words))]
        return _encode(tokenizer, spell([*words, *cue]), choices)


@dataclasses.dataclass(frozen=True)
class Item:
    """A problem with its answer in units; `pool` are the units that this item gives to wrong answers."""

    problem: str
    answer: Sequence[str]
    pool: Sequence[str]


@dataclasses.dataclass(frozen=True)
class FewShot(Task):
    """SHOTS solved problems, a line each, and one to solve.

    Attributes:
        item: makes a problem of a size.
        mark: between problem and answer.
        separator: between the answer's units.
    """

    item: Callable[[np.random.Generator, int], Item]
    mark: str = "->"
    separator: str = " "

    def _write(self, rng, size, tokenizer):
        pool: list[str] = []
        while len(pool) < CHOICES:  # short items may be alike
            *shots, asked = (self.item(rng, size) for _ in range(SHOTS + 1))
            pool = sorted({unit for item in (*shots, asked) for unit in item.pool})
        choices = [self._line_end(choice) for choice in (asked.answer, *near_misses(rng, asked.answer, pool))]
        lines = "".join(f"{item.problem} {self.mark}{self._line_end(item.answer)}" for item in shots)
        return _encode(tokenizer, f"{lines}{asked.problem} {self.mark}", choices)

    def _line_end(self, units: Sequence[str]) -> str:
        return f" {self.separator.join(units)}\n"


def near_misses(rng: np.random.Generator, answer: Sequence, pool: Sequence, count: int = CHOICES - 1) -> list[list]:
    """`count` copies of `answer` with one unit, the same in all, replaced by others of `pool`; none begins with "0".

    To a model that ignores the problem all are equally good on average: it is right once in `count` + 1 times.
    """
    position = int(rng.integers(len(answer)))
    others = [unit for unit in pool if unit != answer[position] and (position or unit != "0")]
    chosen = [others[index] for index in rng.choice(len(others), count, replace=False)]
    return [[*answer[:position], unit, *answer[position + 1 :]] for unit in chosen]


def _draw(rng: np.random.Generator, pool: Sequence[str], count: int) -> list[str]:
    return [pool[index] for index in rng.choice(len(pool), count, replace=False)]


def _encode(tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> Question:
    """Prompt and answers are encoded apart, so that all choices follow the same tokens."""
    prompt_L, *answers = tokenizer.encode([prompt, *choices])
    prompt_L = np.concatenate([[tokenizer.bos_id], prompt_L]).astype(np.int32)
    return Question(prompt_L, tuple(answers), len(choices[0].encode()))


@functools.lru_cache(maxsize=4)
def text_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Ids that are text on their own: decoded and encoded again, they are themselves. Neither bytes nor marks are."""
    ids = np.arange(tokenizer.base_size)
    texts = [tokenizer.decode([token]) for token in ids]
    same = [bool(t) and e.tolist() == [i] for i, t, e in zip(ids, texts, tokenizer.encode(texts), strict=True)]
    return ids[same]


def _copy(rng, size):
    letters = _draw(rng, LETTERS, size)
    return Item(" ".join(letters), letters, letters)


def _reverse(rng, size):
    letters = _draw(rng, LETTERS, size)
    return Item(" ".join(letters), letters[::-1], letters)


def _sort(rng, size):
    letters = _draw(rng, LETTERS, size)
    return Item(" ".join(letters), sorted(letters), letters)


def _last_letters(rng, size):
    words = _draw(rng, COMMON_WORDS, size)
    return Item(" ".join(words), [word[-1] for word in words], sorted(set("".join(words))))


def _capitals(rng, size):
    words = _draw(rng, COMMON_WORDS, size)
    large = [word.upper() for word in words]
    return Item(" ".join(words), large, large)


def _addition(rng, size):
    low, high = 10 ** (size - 1), 10**size
    a, b = (int(n) for n in rng.integers(low, high, 2))
    return Item(f"{a} + {b}", str(a + b), DIGITS)


TASKS = {
    task.name: task
    for task in (
        TokenInduction("induction_tokens", "induction, tokens", (1, 2, 4, 8)),
        WordInduction("induction_words", "induction, words", (1, 2, 4)),
        FewShot("copy", "copy, letters", (1, 2, 4, 6), _copy),
        FewShot("reverse", "reverse, letters", (2, 3, 4, 6), _reverse),
        FewShot("sort", "sort, letters", (2, 3, 4, 6), _sort),
        FewShot("last_letter", "last letters, words", (1, 2, 3), _last_letters),
        FewShot("capital", "capitals, words", (1, 2, 3), _capitals),
        FewShot("addition", "addition, digits", (1, 2, 3), _addition, "=", ""),
    )
}


def find_tasks(names: Sequence[str] | None) -> list[Task]:
    """The named tasks; all of them for None or nothing.

    Raises:
        UserError: no task of that name.
    """
    unknown = [name for name in names or () if name not in TASKS]
    if unknown:
        raise UserError(f"--task={unknown[0]}: no such task; there are {', '.join(TASKS)}")
    return [TASKS[name] for name in names or TASKS]
