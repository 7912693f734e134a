"""A process that looks at an object store when it is asked to: one command a line on stdin, one JSON answer a line."""

import json
import pathlib
import sys

from pretrain.core import storage
from pretrain.core.errors import UserError


def answer(command: str, path: str):
    """What this process sees at `path`."""
    if command == "exists":
        return storage.Path(path).exists()
    if command == "list":
        return sorted(found.name for found in storage.Path(path).iterdir())
    if command == "copy":
        local = storage.local_copy(path)
        return [local, pathlib.Path(local).read_text()]
    if command == "write":
        storage.write_json(path, {"b": 1, "a": "ä"})
        return storage.read_json(path)
    if command == "read":
        try:
            return storage.read_json(path)
        except UserError as error:
            return str(error)
    raise AssertionError(command)


for line in sys.stdin:
    print(json.dumps(answer(*line.split())), flush=True)
