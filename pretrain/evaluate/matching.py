"""How well representations match: retrieval between two sets, classes by prompts, and linear probes. Plain numpy.

Zero-shot classes by prompts: Radford et al. 2021, section 3.1.4; a linear probe: Alain and Bengio 2016.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

RANKS = (1, 5, 10)
ROWS = 1024  # queries at once
FLOOR = 0.1  # of a regression's features: without it, one that hardly ever varies would outweigh others where it does


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Matching:
    """What pictures and captions are tried on.

    Attributes:
        sets: name of a trial -> "source/split" of the cache; none tries the validation split of every source.
        candidates: different captions to choose among, at most; pictures are theirs.
        templates: prompts around a caption, whose representations are averaged, e.g. ("a photo of a {}", "a {} sign").
        batch_size: pictures or captions encoded at once.
        seed: draws the candidates.
    """

    sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    candidates: int = 1000
    templates: Sequence[str] = ("{}",)
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check(self.candidates >= 2, f"Matching.candidates must be 2 or more, got {self.candidates}")
        check(self.batch_size >= 1, f"Matching.batch_size must be 1 or more, got {self.batch_size}")
        check(
            bool(self.templates) and all(each.count("{}") == 1 for each in self.templates),
            f"Matching.templates must each hold {{}} once, where the caption goes; got {self.templates}",
        )


def ranks(queries_BJ: np.ndarray, keys_NJ: np.ndarray, own_B: np.ndarray) -> np.ndarray:
    """Place of each query's own key, int64 [B], 0 for the best; equal products count against it.

    Args:
        queries_BJ, keys_NJ: float.
        own_B: int, which key is a query's own.
    """
    found = []
    for start in range(0, len(queries_BJ), ROWS):
        products = queries_BJ[start : start + ROWS] @ keys_NJ.T
        own = np.take_along_axis(products, own_B[start : start + ROWS, None], axis=1)
        found.append((products >= own).sum(axis=1) - 1)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def recall(places: np.ndarray, name: str) -> dict[str, float]:
    """{"NAME_r1", "NAME_r5", "NAME_r10", "NAME_median_rank"} of places, the first being rank 1."""
    scores = {f"{name}_r{rank}": float(np.mean(places < rank)) for rank in RANKS}
    return scores | {f"{name}_median_rank": float(np.median(places)) + 1}


def class_vectors(
    captions: Sequence[str], templates: Sequence[str], encode: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """One unit vector a caption, [N, J]: the mean over prompts, as a zero-shot classifier's weights."""
    total = sum(encode([template.format(caption) for caption in captions]) for template in templates)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def linear_probe(
    train_ND: np.ndarray, train_labels_N: np.ndarray, test_MD: np.ndarray, test_labels_M: np.ndarray,
    *, penalty: float = 1e-3, iterations: int = 200,
) -> float:  # fmt: skip
    """Accuracy on the test set of multinomial logistic regression on frozen features.

    Args:
        train_ND, test_MD: features; standardised by the training set's mean and deviation.
        train_labels_N, test_labels_M: any values; a test label that training lacks counts as wrong.
        penalty: of the squared weights, against the mean loss.
        iterations: of L-BFGS.
    """
    from scipy.optimize import minimize  # here, as in `core.sound`: it takes long to import

    classes, targets_N = np.unique(train_labels_N, return_inverse=True)
    mean, deviation = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-6
    x_ND, y_MD = (np.asarray((x - mean) / deviation, np.float64) for x in (train_ND, test_MD))
    shape = (x_ND.shape[1] + 1, len(classes))
    rows = np.arange(len(x_ND))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = x_ND @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.mean(np.log(np.maximum(p[rows, targets_N], 1e-300))) + penalty * np.sum(weights[:-1] ** 2)
        p[rows, targets_N] -= 1
        p /= len(x_ND)
        slope = np.vstack([x_ND.T @ p + 2 * penalty * weights[:-1], p.sum(axis=0)])
        return value, slope.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    weights = found.x.reshape(shape)
    chosen = classes[np.argmax(y_MD @ weights[:-1] + weights[-1], axis=1)]
    return float(np.mean(chosen == np.asarray(test_labels_M)))


def linear_regression(
    train_ND: np.ndarray, targets_NK: np.ndarray, test_MD: np.ndarray, penalties: Sequence[float]
) -> np.ndarray:
    """What ridge regression on frozen features says of the test set, float64 [len(penalties), M, K].

    Args:
        train_ND, test_MD: features, of which there may be many more than rows: the weights are sums of rows. They are
            standardised by the training set's mean, and by their deviations plus `FLOOR` of the deviation of all.
        targets_NK: numbers that are asked for.
        penalties: of the squared weights, as multiples of the rows' mean squared length, all > 0.
    """
    mean_D, mean_K = train_ND.mean(axis=0), targets_NK.mean(axis=0)
    deviation_D = train_ND.std(axis=0)
    deviation_D += FLOOR * np.sqrt(np.square(deviation_D).mean())
    x_ND, y_MD = ((x - mean_D) / deviation_D for x in (train_ND, test_MD))
    products_NN, products_MN = (np.asarray(each @ x_ND.T, np.float64) for each in (x_ND, y_MD))
    said = []
    for penalty in np.multiply(penalties, np.trace(products_NN) / len(x_ND)):
        weights_NK = np.linalg.solve(products_NN + penalty * np.eye(len(x_ND)), targets_NK - mean_K)
        said.append(products_MN @ weights_NK + mean_K)
    return np.stack(said)


def explained(said_MK: np.ndarray, true_MK: np.ndarray) -> float:
    """Share of the variance of all K numbers together that is explained: 1 is all, 0 what their mean explains."""
    away = np.square(true_MK - true_MK.mean(axis=0)).sum()
    return float(1 - np.square(said_MK - true_MK).sum() / away)
