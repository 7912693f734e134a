"""WebDataset shards, as img2dataset writes them: tar files in which neighbours of one base name are one example.

    00012.jpg  00012.txt  00012.json        a picture, its caption, and what is known of it

A picture is kept as it is, as the array `image`; `.npy` members and others become arrays named by their extension;
`.json` is metadata, and holds the caption where there is no `.txt`. Members are streamed; a damaged end is one
unreadable record.
"""

import json
import os
import tarfile
from collections.abc import Iterator

from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, open_stream
from pretrain.curate.readers import DAMAGE, Fields, from_mapping, one_line

FORMAT = "webdataset"
PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
NO_ARRAYS = {"cls", "txt", "json"}


def read_shard(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One record an example, in the order of the tar file."""
    base, members = None, {}
    try:
        with open_stream(file.path) as stream, tarfile.open(fileobj=_Forward(stream), mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                stem, _, extension = name.partition(".")
                if base is not None and base != os.path.join(folder, stem):
                    yield _record(f"{file.path}:{base}", members, fields)
                    members = {}
                base = os.path.join(folder, stem)
                is_small = member.size <= fields.max_record_bytes
                members[extension.lower()] = tar.extractfile(member).read() if is_small else None
    except (tarfile.TarError, *DAMAGE) as error:
        yield Unreadable(f"{file.path}:{base or 0}", f"damaged behind this example: {one_line(error)}")
        return
    if members:
        yield _record(f"{file.path}:{base}", members, fields)


def _record(origin: str, members: dict[str, bytes | None], fields: Fields) -> Record | Unreadable:
    """An example of its members by extension; None stands for one that is too large."""
    large = [extension for extension, content in members.items() if content is None]
    if large:
        problem = f"its .{large[0]} is larger than Fields.max_record_bytes, {fields.max_record_bytes:,}"
        return Unreadable(origin, problem, rule="large_member")
    try:
        about = json.loads(members["json"]) if "json" in members else {}
        if not isinstance(about, dict):
            raise ValueError("its JSON is no object")
        caption = members["txt"].decode() if "txt" in members else about.get(fields.text) or about.get("caption")
        if "cls" in members:
            about["class"] = members["cls"].decode().strip()
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 both
        return Unreadable(origin, one_line(error), rule="broken_member")
    record = from_mapping(origin, about | {fields.text: caption if isinstance(caption, str) else ""}, fields)
    if isinstance(record, Unreadable):
        return record
    arrays = dict(record.arrays or {})
    for extension, content in members.items():
        if extension in PICTURES:
            arrays["image"] = content
        elif extension not in NO_ARRAYS:
            arrays[extension.removesuffix(".npy")] = content
    return record._replace(arrays=arrays or None)


class _Forward:
    """A stream that tarfile can read from start to end; plain files have `read`, decompressed ones `read1` alone."""

    def __init__(self, stream):
        self._stream = stream

    def read(self, size: int) -> bytes:
        parts, left = [], size
        while left and (part := self._stream.read1(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
