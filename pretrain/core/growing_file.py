"""A file that grows at its end and outlives a full disk: what is refused waits in memory and is written later."""

import os

from pretrain.core.storage import Path, is_remote, write_bytes


class GrowingFile:
    """Appends bytes, in order and once.

    On a local disk they are appended as they come. An object store has no append, so there the file is written whole at
    each `flush`.

    Args:
        path: the file; folders above it are made.
        start: what it begins with, in place of what is there.

    Attributes:
        waiting: bytes that are not in the file yet.
    """

    def __init__(self, path: Path | str, start: bytes = b""):
        self._path, self.waiting = Path(path), bytearray()
        write_bytes(path, start)
        self._whole = bytearray(start) if is_remote(path) else None
        self._file = None if is_remote(path) else open(os.fspath(path), "ab", buffering=0)  # noqa: SIM115

    def append(self, data: bytes) -> None:
        """Adds bytes at the end.

        Raises:
            OSError: the disk refuses them. They are not lost: the next call tries again.
        """
        if self._whole is not None:
            self._whole += data
            return
        self.waiting += data
        while self.waiting:
            written = self._file.write(self.waiting)  # perhaps a part only
            del self.waiting[:written]

    def flush(self) -> None:
        """Makes all that was appended durable.

        Raises:
            OSError: as `append`.
        """
        self.append(b"")
        if self._whole is None:
            os.fsync(self._file.fileno())
        else:
            write_bytes(self._path, bytes(self._whole))

    def close(self) -> None:
        """Closes it; what was not flushed may be lost."""
        if self._file is not None:
            self._file.close()
