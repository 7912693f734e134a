"""A small, bounded memory of what was computed last, shared by threads and left behind when an object is pickled."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """Keeps the results of the last `size` different calls; threads that ask for the same one wait for it."""

    def __init__(self, size: int):
        self._size, self._kept, self._lock = size, OrderedDict(), threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The kept value of `key`, or what `make()` returns."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __getstate__(self) -> int:
        return self._size

    def __setstate__(self, size: int) -> None:
        self.__init__(size)
