"""What objectives have in common that hide patches of pictures and films: which ones, and how a batch tells them.

As many are hidden of every picture, so arrays have one shape. They are hidden at random (MAE, He et al. 2021) or in
blocks (BEiT, Bao et al. 2021; I-JEPA, Assran et al. 2023). Of films they are hidden at the same places at all times, or
they could be looked up a moment before (VideoMAE, Tong et al. 2022; V-JEPA, Bardes et al. 2024), or at others at each
time, so that where something went must be said from where it was (Feichtenhofer et al. 2022, section 3).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from pretrain.core.batch import ArraySpec
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.objectives.examples import Examples
from pretrain.objectives.films import Films
from pretrain.objectives.pictures import Pictures

BLOCK_AREA = 0.15, 0.2  # least and largest share of a picture that a block takes (I-JEPA, appendix A.1)
BLOCK_ASPECT = 0.75, 1.5


@dataclasses.dataclass(frozen=True)
class HiddenPatches(Examples):
    """Pictures, or films, of which some patches are hidden. Batches hold, beside the pictures,

    seen, hidden: int32 [B, K] and [B, M], numbers of patches by time, row and column, rising.

    Attributes:
        pictures: `@Pictures()` of one size, or `@Films()`.
        ratio: share of the patches that is hidden.
        blocks: in blocks rather than at random.
        at_all_times: of films, the same places at all times rather than others, as many, at each.
    """

    pictures: Pictures | Films = dataclasses.field(default_factory=Pictures)
    ratio: float = 0.75
    blocks: bool = False
    at_all_times: bool = True

    def __post_init__(self):
        check_fields(self)
        kind, p = type(self).__name__, self.pictures
        if isinstance(p, Pictures):
            check(p.patches is None, f"{kind} hides patches of pictures of one size: Pictures.patches must be None")
            check(
                p.image_size % p.patch_size == 0,
                f"Pictures.image_size ({p.image_size}) must be a multiple of patch_size ({p.patch_size})",
            )
        _, rows, columns = p.grid
        check(
            0 < self.seen_places < rows * columns,
            f"{kind}.ratio = {self.ratio} of {rows} x {columns} patches leaves none to see or none to say",
        )

    @property
    def features(self) -> tuple[str, ...]:
        return (self.pictures.feature,)

    @property
    def seen_places(self) -> int:
        """Patches that are seen of a picture, or at each time of a film."""
        _, rows, columns = self.pictures.grid
        return int(rows * columns * (1 - self.ratio) + 1e-6)

    @property
    def encoded_length(self) -> int:
        """Patches that the encoder reads."""
        return self.pictures.grid[0] * self.seen_places

    def example_spec(self) -> dict[str, ArraySpec]:
        seen = self.encoded_length
        numbers = {"seen": seen, "hidden": int(np.prod(self.pictures.grid)) - seen}
        return self.pictures.spec() | {name: ArraySpec((n,), "int32", (None,)) for name, n in numbers.items()}

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A view of the picture or film, and which of its patches are seen and which are not."""
        view = self.pictures.view(record[self.pictures.feature], rng)
        times, rows, columns = self.pictures.grid
        draw = hidden_blocks if self.blocks else hidden_at_random
        draws = 1 if self.at_all_times else times
        count = rows * columns - self.seen_places
        is_hidden = np.concatenate([draw(rows, columns, count, rng) for _ in range(draws)])
        is_hidden = np.tile(is_hidden, times // draws)
        return view | {"seen": np.flatnonzero(~is_hidden), "hidden": np.flatnonzero(is_hidden)}

    def head(self, model: Any, hidden: Any, batch: dict[str, jax.Array]) -> Any:
        """What the forward pass says; there is no other head."""
        del model, batch
        return hidden

    def shown(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The pictures or films of a batch alone."""
        return {name: batch[name] for name in self.pictures.spec()}


def hidden_at_random(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` places of a picture, each as likely: bool [rows * columns]."""
    is_hidden = np.zeros(rows * columns, bool)
    is_hidden[rng.permutation(rows * columns)[:count]] = True
    return is_hidden


def hidden_blocks(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` places of a picture, in blocks that may overlap; the last is cut short: bool [rows * columns]."""
    is_hidden = np.zeros((rows, columns), bool)
    while (missing := count - is_hidden.sum()) > 0:
        area, aspect = rng.uniform(*BLOCK_AREA) * rows * columns, np.exp(rng.uniform(*np.log(BLOCK_ASPECT)))
        height = int(np.clip(round(np.sqrt(area * aspect)), 1, rows))
        width = int(np.clip(round(np.sqrt(area / aspect)), 1, columns))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = np.zeros_like(is_hidden)
        block[top : top + height, left : left + width] = True
        is_hidden.flat[np.flatnonzero(block & ~is_hidden)[:missing]] = True
    return is_hidden.reshape(-1)
