"""Source-code trees: every file of a checkout with its language and licence; repositories stay together in the split.

A repository is a folder or an archive (.zip, .tar and .tar.gz, .tgz, .tar.zst, .tar.xz): "code:checkouts/*" reads all
of a folder's. Files that are no source code are rejected with the rule that says why; `code_rules.py` has the rules
about generated, minified and vendored ones. Following The Stack (Kocetkov et al. 2022).
"""

import bz2
import codecs
import contextlib
import functools
import gzip
import json
import lzma
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import fsspec

from pretrain.core.errors import UserError
from pretrain.curate import licences, readers
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import CHUNK, EXPANSION_ALLOWANCE, MAX_EXPANSION, InputFile, as_written, zstd
from pretrain.curate.languages import language_of
from pretrain.curate.readers import BEGINNING, Fields, one_line

FORMAT = "code"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".whl")
OPENERS = {"gz": gzip.open, "tgz": gzip.open, "zst": zstd.open, "xz": lzma.open, "bz2": bz2.open}
SKIPPED_FOLDERS = {".git", ".hg", ".svn", "__pycache__"}  # histories and caches are no part of a checkout
DECLARED_CODING = re.compile(rb"^[ \t\f]*(?:#|//|/\*|;|%|--).*?coding[:=][ \t]*([-\w.]+)")
MAX_LICENCE_BYTES = 1 << 20
# Encrypted members raise RuntimeError, unknown compressions NotImplementedError.
DAMAGE = (*readers.DAMAGE, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, NotImplementedError, RuntimeError)


class Member(NamedTuple):
    """A file of a repository.

    Attributes:
        path: inside the repository, with "/".
        size: bytes.
        read: its first bytes, at most so many.
    """

    path: str
    size: int
    read: Callable[[int], bytes]


def find_repositories(pattern: str, source: str) -> list[InputFile]:
    """One unit of work for each folder or archive that a path or glob names.

    Raises:
        UserError: there is none.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(pattern)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open --input={FORMAT}:{pattern}: {error}") from error
    paths = [root] if filesystem.exists(root) else filesystem.glob(root)
    found = []
    for path in sorted(paths):
        shown = as_written(pattern, path)
        if filesystem.isdir(path):
            size = sum(info["size"] or 0 for info in filesystem.find(path, detail=True).values())
            found.append(InputFile(shown, size, source, FORMAT))
        elif path.lower().endswith(ARCHIVES):
            found.append(InputFile(shown, filesystem.size(path), source, FORMAT))
    if not found:
        raise UserError(f"no folders or archives match {pattern}; give a checkout, an archive or a glob in quotes")
    return found


def read_repository(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One document a source file; origin is the repository and the path in it."""
    by_folder: dict[str, str] = {}
    with contextlib.suppress(*DAMAGE):  # told about below
        for member in _members(file):
            _note_licence(member, by_folder)
    name = posixpath.basename(file.path.rstrip("/"))
    origin = file.path
    try:
        for member in _members(file):
            origin = posixpath.join(file.path, member.path)
            yield _read_member(member, origin, name, by_folder, fields)
    except DAMAGE as error:
        yield Unreadable(f"{file.path}:damage", f"damaged behind {origin}: {one_line(error)}")


def _read_member(member: Member, origin: str, repository: str, by_folder: dict[str, str], fields: Fields):
    if member.size > fields.max_record_bytes:
        problem = f"a file of {member.size:,} bytes; Fields.max_record_bytes is {fields.max_record_bytes:,}"
        return Unreadable(origin, problem, member.read(BEGINNING), member.size)
    try:
        content = member.read(fields.max_record_bytes + 1)
    except DAMAGE as error:
        return Unreadable(origin, f"damaged: {one_line(error)}", size=member.size)
    if len(content) > fields.max_record_bytes:
        return Unreadable(origin, "expands to more than its archive says", content[:BEGINNING], member.size)
    language = language_of(member.path, content[:BEGINNING])
    if language is None:
        return Unreadable(origin, "no known language", content[:BEGINNING], member.size, rule="unknown_language")
    if not content.strip():
        return Unreadable(origin, "an empty file", b"", member.size, rule="empty")
    text, charset = decode_source(content)
    if text is None:
        rule = "binary" if b"\0" in content else "encoding"
        return Unreadable(origin, f"no text in {charset}", content[:BEGINNING], member.size, rule=rule)
    licence = licences.licence_of(text[: licences.HEADER_CHARACTERS]) or _nearest(member.path, by_folder)
    metadata = {"path": member.path, "repository": repository, "language": language, "charset": charset}
    if licence is not None:
        metadata["licence"] = licence
    return Record(
        text, origin, group=origin[: len(origin) - len(member.path) - 1], metadata=json.dumps(metadata, sort_keys=True)
    )


def decode_source(content: bytes) -> tuple[str | None, str]:
    """A source file's text and charset; None where it is no text in the charset it has or declares.

    A byte order mark says what it is, or a coding declaration in the first two lines (PEP 263); all else is UTF-8, or
    Windows-1252 where a few bytes beyond ASCII (comments with names) are no UTF-8.
    """
    charset = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = "utf-16"
    elif b"\0" in content:
        return None, "binary"
    text = _decoded(content, charset)
    if text is None and charset == "utf-8":
        declared = next(
            (match[1].decode() for line in content.split(b"\n", 2)[:2] if (match := DECLARED_CODING.match(line))), ""
        )
        charset = declared.lower() or "windows-1252"
        is_rare = len(content.translate(None, bytes(range(128)))) <= 0.05 * len(content)
        text = _decoded(content, charset) if declared or is_rare else None
    return text, charset


def _decoded(content: bytes, charset: str) -> str | None:
    try:
        text = content.decode(charset)
        text.encode("utf-8")
    except (UnicodeError, LookupError):
        return None
    return text


def _note_licence(member: Member, by_folder: dict[str, str]) -> None:
    """Remembers what a licence file, or a package's metadata where there is none, says about its folder."""
    folder, name = posixpath.split(member.path)
    folder = re.sub(r"^[^/]+\.(?:dist|egg)-info", "", folder).lstrip("/")  # what an installed package says about itself
    is_licence = licences.FILE_NAMES.fullmatch(name) is not None
    if not is_licence and name not in licences.METADATA_NAMES:
        return
    try:
        text = member.read(MAX_LICENCE_BYTES).decode("utf-8", "replace")[: licences.FILE_CHARACTERS]
    except DAMAGE:
        return  # told about when it is read as a file
    if is_licence:
        folder = posixpath.dirname(folder) if posixpath.basename(folder).lower() == "licenses" else folder
        licence = licences.licence_of(text)
        if licence is not None:
            by_folder[folder + "/"] = " AND ".join(
                dict.fromkeys([*filter(None, [by_folder.get(folder + "/")]), licence])
            )
    elif licence := licences.declared_licence(name, text):
        by_folder.setdefault(folder, licence)


def _nearest(path: str, by_folder: dict[str, str]) -> str | None:
    """The licence of the innermost folder around a file that has one; licence files go before metadata."""
    folder = posixpath.dirname(path)
    while True:
        licence = by_folder.get(folder + "/") or by_folder.get(folder)
        if licence is not None or not folder:
            return licence
        folder = posixpath.dirname(folder)


def _members(file: InputFile) -> Iterator[Member]:
    """The files of a repository, in a fixed order; each can be read until the next is asked for.

    Raises:
        One of `DAMAGE`: an archive is damaged or expands beyond belief; all files before that came out.
    """
    filesystem, root = fsspec.core.url_to_fs(file.path)
    if filesystem.isdir(root):
        for full, info in sorted(filesystem.find(root, detail=True).items()):
            inner = full[len(root.rstrip("/")) + 1 :]
            if _is_wanted(inner) and not info.get("islink"):
                yield Member(inner, info["size"] or 0, functools.partial(_read_path, filesystem, full))
        return
    limit = MAX_EXPANSION * file.size + EXPANSION_ALLOWANCE
    with filesystem.open(root, "rb") as raw:
        for member in (_zip_members if root.lower().endswith((".zip", ".whl")) else _tar_members)(raw, root):
            limit -= member.size
            if limit < 0:
                raise ValueError("an archive that expands beyond belief")
            yield member


def _read_path(filesystem: fsspec.AbstractFileSystem, path: str, size: int) -> bytes:
    with filesystem.open(path, "rb") as stream:
        return stream.read(size)


def _zip_members(raw: BinaryIO, path: str) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir() and _is_wanted(info.filename):
                yield Member(info.filename, info.file_size, functools.partial(_read_zipped, archive, info))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> bytes:
    with archive.open(info) as stream:
        return stream.read(size)


def _tar_members(raw: BinaryIO, path: str) -> Iterator[Member]:
    opener = next((opener for suffix, opener in OPENERS.items() if path.lower().endswith(suffix)), None)
    with tarfile.open(fileobj=opener(raw, "rb") if opener else raw, mode="r|") as archive:
        for info in archive:
            if info.isfile() and _is_wanted(info.name):
                yield Member(info.name.removeprefix("./"), info.size, archive.extractfile(info).read)
        # tarfile takes a header that it cannot read for the archive's end, behind which only zeros may stand.
        while rest := archive.fileobj.read(CHUNK):
            if rest.strip(b"\0"):
                raise ValueError("no file begins where one should")


def _is_wanted(path: str) -> bool:
    return not SKIPPED_FOLDERS & set(path.split("/")[:-1])
