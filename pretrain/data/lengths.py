"""What an objective makes of a record's lengths, and into which pieces a long record is cut first.

An objective may change a record before packing (span corruption, infilling). What it does to the length must follow
from the length alone, so that packing can be planned without reading. Records whose features all have one length (text;
the channels of one recording) are cut into pieces that still fit after `prepare`; others (a pair of texts) never are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.core.errors import UserError, check


class Lengths:
    """The lengths of an objective's packed features.

    Args:
        objective: its `features` and `prepared_length`. With one feature, `prepared_length` gets int [n] and returns
            int [n], or `{packed feature: int [n]}`; with several it gets and returns such a mapping.
        sequence_length: elements a row holds, for every packed feature or by name.

    Attributes:
        features: names read from the cache.
        packed: names of the packed features.
        capacity: elements a row holds, per packed feature.
        whole: records are never cut into pieces.
    """

    def __init__(self, objective: Any, sequence_length: int | Mapping[str, int]):
        self._objective = objective
        self.features = tuple(objective.features)
        self.whole = getattr(objective, "whole_records", False)
        self.packed = tuple(self._call(np.ones((1, len(self.features)), np.int64)))
        if isinstance(sequence_length, Mapping):
            missing = sorted(set(self.packed) ^ set(sequence_length))
            check(
                not missing, f"sequence_length must name {', '.join(self.packed)}; it differs in {', '.join(missing)}"
            )
            self.capacity = tuple(int(sequence_length[name]) for name in self.packed)
        else:
            self.capacity = (int(sequence_length),) * len(self.packed)
        check(min(self.capacity) > 0, f"sequence_length = {sequence_length} must be positive")
        self._table = None

    def prepared(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths after `prepare`, int64 [n, packed features], of pieces of lengths [n, features]."""
        if len(self.features) == 1 and not self.whole and lengths.size and lengths.max() < len(self.table):
            return self.table[lengths[:, 0]]
        return np.stack([np.asarray(value, np.int64) for value in self._call(lengths).values()], axis=1)

    @property
    def table(self) -> np.ndarray:
        """Prepared lengths of pieces of 0, 1, ... up to the longest that fits a row."""
        if self._table is None:
            self._table = self._make_table()
        return self._table

    @property
    def longest(self) -> int:
        """Length of the longest piece that fits a row."""
        return len(self.table) - 1

    def _make_table(self) -> np.ndarray:
        lengths = np.arange(1, 4 * max(self.capacity) + 1)
        prepared = self._call(np.repeat(lengths[:, None], len(self.features), axis=1))
        prepared = np.stack([np.asarray(value, np.int64) for value in prepared.values()], axis=1)
        name = f"{type(self._objective).__name__}.prepared_length"
        check(bool(np.all(np.diff(prepared, axis=0) >= 0)), f"{name} must not fall as the length grows")
        check(bool(np.all(prepared[0] >= 1)), f"{name} must be 1 or more")
        longest = int(np.searchsorted(np.any(prepared > self.capacity, axis=1), True))
        if longest == 0:
            raise UserError(f"{name}: not even a record of length 1 fits sequences of {self.capacity}")
        return np.concatenate([np.zeros((1, prepared.shape[1]), np.int64), prepared[:longest]])

    def _call(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        given: Any = {name: lengths[:, column] for column, name in enumerate(self.features)}
        result = self._objective.prepared_length(given if len(self.features) > 1 else lengths[:, 0])
        if not isinstance(result, Mapping):
            check(
                len(self.features) == 1, "prepared_length of an objective with several features must return a mapping"
            )
            result = {self.features[0]: result}
        shapes = {np.shape(value) for value in result.values()}
        check(shapes == {(len(lengths),)}, "prepared_length must return one length for each it gets")
        return dict(result)


def can_split(lengths: np.ndarray) -> bool:
    """Whether the features of every record (lengths [records, features]) have one length, so that it can be cut."""
    return bool(np.all(lengths == lengths[:, :1]))


def describe(objective: Any) -> Sequence:
    """What identifies an objective in a fingerprint: its class and the values of its fields."""
    fields = getattr(objective, "__dataclass_fields__", {})
    return [type(objective).__qualname__, {name: repr(getattr(objective, name)) for name in sorted(fields)}]
