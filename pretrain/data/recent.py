"""A small, bounded memory of what was computed last, shared by threads and left behind when an object is pickled."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """Keeps the results of the last different calls; threads that ask for the same one wait for it.

    Args:
        size: how many to keep or, with `weigh`, of what weight in all; the newest is kept whatever it weighs.
        weigh: the weight of a result, e.g. `len`.
    """

    def __init__(self, size: int, weigh: Callable[[Any], int] | None = None):
        self._size, self._weigh = size, weigh
        self._kept, self._weight, self._lock = OrderedDict(), 0, threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The kept value of `key`, or what `make()` returns."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                self._weight += self._weight_of(self._kept[key])
                while self._weight > self._size and len(self._kept) > 1:
                    self._weight -= self._weight_of(self._kept.popitem(last=False)[1])
            self._kept.move_to_end(key)
            return self._kept[key]

    def _weight_of(self, value: Any) -> int:
        return 1 if self._weigh is None else self._weigh(value)

    def __getstate__(self) -> tuple:
        return self._size, self._weigh

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)
