"""An object store in memory under gs://, as strict as a real one: no rename, no append."""

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock

import fsspec
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class ObjectStore(MemoryFileSystem):
    """Objects by whole name."""

    protocol = ("gs", "gcs")
    cachable = False
    store: dict = {}  # noqa: RUF012 (fsspec's own convention: shared by all instances)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").removeprefix("gcs://").strip("/") if str(path).strip("/") else ""

    def _open(self, path, mode="rb", **options):
        assert "a" not in mode and "+" not in mode, "an object store cannot append"
        return super()._open(path, mode, **options)

    def mv(self, *_, **__):
        raise AssertionError("an object store cannot rename")


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Makes gs:// paths an empty `ObjectStore` for epath and fsspec in this process."""
    store = ObjectStore(skip_instance_cache=True)
    store.store.clear()
    real = fsspec.filesystem

    def filesystem(protocol, **options):
        return store if protocol in ObjectStore.protocol else real(protocol, **options)

    registry = sys.modules["fsspec.registry"]._registry
    classes = {"gs": ObjectStore, "gcs": ObjectStore}
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    with mock.patch.object(fsspec, "filesystem", filesystem), mock.patch.dict(registry, classes):
        yield store
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    store.store.clear()
