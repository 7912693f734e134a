"""A Google Cloud Storage server on 127.0.0.1 for tests: gcp-storage-emulator in memory, as strict as the real one.

Three things that the emulator leaves out and that checkpoints need: generations in download headers, writes under the
condition of a generation, and listings between two offsets. What this project must not rely on (copy, rewrite, which
a rename is made of, and compose, which an append is made of) is refused.
"""

import contextlib
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from unittest import mock

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class ObjectServer(ThreadingHTTPServer):
    """One bucket; requests are carried out one at a time.

    Attributes:
        on_write: called with an object's name before it is written; what it raises breaks the connection.
        refused: requests that were refused, as "METHOD path".
    """

    def __init__(self):
        self._storage = Storage(use_memory_fs=True)
        self._lock = threading.Lock()
        buckets.create_bucket(BUCKET, self._storage)
        super().__init__(("127.0.0.1", 0), partial(server.RequestHandler, self._storage))
        self.on_write: Callable[[str], None] = lambda name: None
        self.refused: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that make gcsfs, TensorStore and epath use this server, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google for the kind of bucket
        }

    def put(self, name: str, data: bytes) -> None:
        """Writes an object, as another machine would."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        request = urllib.request.Request(f"{self.url}/upload/storage/v1/b/{BUCKET}/o?{query}", data)
        urllib.request.urlopen(request).close()

    def get(self, name: str) -> bytes:
        """The content of an object."""
        with urllib.request.urlopen(f"{self.url}/{BUCKET}/{urllib.parse.quote(name)}") as response:
            return response.read()

    def names(self, prefix: str = "") -> list[str]:
        """The objects there are."""
        return sorted(name for name in list(self._storage.objects.get(BUCKET, {})) if name.startswith(prefix))

    def handle_error(self, request, client_address) -> None:
        """Clients that are gone are no news."""

    def insert(self, request, response, storage) -> None:
        """Writes an object if its generation is the one that the client expects."""
        name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
        self.on_write(name)
        current = self._generation(name)
        if request.query.get("ifGenerationMatch", [current])[0] != current:
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            objects.insert(request, response, storage)

    def get_object(self, request, response, storage) -> None:
        """Describes an object, or reads it if its generation is not the one that the client has."""
        if request.query.get("alt") != ["media"] and request.path.startswith("/storage/"):
            objects.get(request, response, storage)
            return
        current = self._generation(request.params["object_id"])
        if current != "0" and request.query.get("ifGenerationNotMatch") == [current]:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            objects.download(request, response, storage)
        response["x-goog-generation"] = current

    def _generation(self, name: str) -> str:
        return self._storage.objects.get(BUCKET, {}).get(name, {}).get("generation", "0")

    def list_objects(self, request, response, storage) -> None:
        """Lists objects with a prefix and between two offsets."""
        prefix, delimiter, start, end = (
            request.query.get(name, [""])[0] for name in ("prefix", "delimiter", "startOffset", "endOffset")
        )
        items, prefixes = storage.get_file_list(request.params["bucket_name"], prefix or None, delimiter or None)
        items = [item for item in items if item["name"] >= start and (not end or item["name"] < end)]
        response.json({"kind": "storage#objects", "prefixes": prefixes, "items": items})

    def refuse(self, request, response, storage) -> None:
        """Answers that there is no such method."""
        self.refused.append(f"{request.method} {request.path}")
        response.status = HTTPStatus.NOT_IMPLEMENTED

    def routes(self) -> tuple:
        """The emulator's routes with the handlers above in place of its own."""
        mine = {
            objects.insert: self.insert,
            objects.get: self.get_object,
            objects.download: self.get_object,
            objects.ls: self.list_objects,
            **dict.fromkeys((objects.copy, objects.rewrite, objects.compose), self.refuse),
        }
        return tuple(
            (path, {method: self._alone(mine.get(handler, handler)) for method, handler in handlers.items()})
            for path, handlers in server.HANDLERS
        )

    def _alone(self, handler: Callable) -> Callable:
        def handle(request, response, storage):
            _ = request.data  # received before the lock is taken: a slow client holds up nobody else
            with self._lock:
                handler(request, response, storage)

        return handle


@contextlib.contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Runs a server in a thread."""
    with ObjectServer() as running, mock.patch.object(server, "HANDLERS", running.routes()):
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
