"""Paths that may be local or in an object store (gs://, s3://), through etils.epath on fsspec.

Nothing here renames or appends on an object store: a file is written whole, under its final name, and a stage is
complete when its marker file exists, which is written last.
"""

import hashlib
import json
import os
import stat
import tempfile
import uuid
from typing import Any

os.environ.setdefault("EPATH_USE_TF", "false")  # object stores through fsspec: TensorFlow stays off training hosts

import fsspec
import msgspec
from etils import epath

from pretrain.core.errors import RunError, UserError

Path = epath.Path

# What another host or process writes must be seen at once; fsspec would remember listings for the life of the process.
for _protocol in ("gcs", "s3"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def is_remote(path: os.PathLike | str) -> bool:
    """True for object-store paths, which have no rename, append or memory mapping."""
    return "://" in os.fspath(path)


def write_text(path: os.PathLike | str, text: str) -> None:
    """Writes a whole file; on a local disk through a temporary file, so that readers never see half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: os.PathLike | str, data: bytes) -> None:
    """As `write_text`, for bytes. Creates parent folders. A file that was there before keeps its permissions."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(os.fspath(temporary), "xb") as file:
            file.write(data)
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def inside(folder: os.PathLike | str, name: str) -> Path:
    """`folder / name`, for a name that was read from a file.

    Raises:
        RunError: the name leads out of the folder.
    """
    parts = str(name).split("/")
    if not isinstance(name, str) or os.path.isabs(name) or "\0" in name or "://" in name or {"", "..", "."} & {*parts}:
        raise RunError(f"{folder}: the name {name!r} in a description of its files leads elsewhere: it was changed")
    return Path(folder) / name


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: os.PathLike | str, kind: Any = Any) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        kind: what it must hold, as a type, e.g. `dict[str, int]` or a TypedDict.

    Raises:
        UserError: the file does not exist.
        RunError: it is not JSON, or not of that kind.
    """
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is not valid JSON ({error}); delete it and run the stage that writes it again"
        ) from error
    typed(value, kind, path)
    return value


def typed(value: Any, kind: Any, where: os.PathLike | str) -> Any:
    """A JSON value as an object of a type that msgspec knows; names that the type lacks are left out.

    Raises:
        RunError: the value is not of that kind; `where` says where it was read.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RunError(f"{where} is not what this program wrote: {error}") from error


def local_copy(path: os.PathLike | str) -> str:
    """A local file with the content of `path`: itself when local, otherwise a copy in a per-user cache folder.

    For libraries that need a real file (ArrayRecord, SentencePiece). The copy is keyed by what the object store says of
    the object (name, size, checksum, generation), and made again when any of it changes.
    """
    if not is_remote(path):
        return os.fspath(path)
    path = Path(path)
    filesystem, name = fsspec.url_to_fs(os.fspath(path))
    folder = os.path.join(tempfile.gettempdir(), f"pretrain-{os.getuid()}", fingerprint([name, filesystem.ukey(name)]))
    target = os.path.join(folder, path.name)
    if not os.path.exists(target):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write_bytes(target, path.read_bytes())
    return target


def fingerprint(value: Any, *, length: int = 16) -> str:
    """A short hex digest of a JSON-serialisable value; equal values give equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=length // 2).hexdigest()
