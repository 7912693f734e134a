"""Real text to measure on, from what is installed: documentation, manuals and source of Debian and Python packages.

    python benchmarks/real_text.py OUTPUT [--megabytes=192] [--folders …] [--gzip]

Writes OUTPUT/00.jsonl, 01.jsonl … of about 16 MB each, records {"id", "text", "path"}. Files are taken in the order of
a hash of their path, until there is enough: one machine always writes the same bytes, and every part of them is a
mixture. Copies are left in, as a crawl would have them.
"""

import argparse
import gzip
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FOLDERS = (
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/share/vim",
    "/usr/lib/python3",
    sysconfig.get_paths()["purelib"],
)
EXTENSIONS = {"", ".html", ".md", ".pl", ".pm", ".pod", ".py", ".rst", ".txt", ".vim"} | {f".{n}" for n in range(1, 9)}
MIN_BYTES, MAX_BYTES = 500, 60_000
FILE_BYTES = 16 << 20


def find_files(folders: list[str]) -> list[Path]:
    """Text files of the folders, by extension and without links, in the order of a hash of their path."""
    found = []
    for folder in folders:
        for parent, _, names in os.walk(folder):
            paths = [Path(parent, name) for name in names]
            found += [path for path in paths if Path(path.name.removesuffix(".gz")).suffix in EXTENSIONS]
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    return sorted(files, key=lambda path: hashlib.blake2b(os.fsencode(path), digest_size=16).digest())


def read_texts(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """The files that are UTF-8 text of a fitting size."""
    for path in files:
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if MIN_BYTES <= len(content) <= MAX_BYTES and b"\0" not in content:
                yield path, content.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue  # not text: no part of this corpus


def write(output: Path, folders: list[str], megabytes: float, is_gzip: bool) -> tuple[int, int]:
    """Writes the corpus; returns its documents and bytes of text."""
    output.mkdir(parents=True, exist_ok=True)
    documents = size = 0
    lines: list[bytes] = []

    def flush(number: int) -> None:
        content = b"".join(lines)
        path = output / f"{number:02d}.jsonl{'.gz' if is_gzip else ''}"
        path.write_bytes(gzip.compress(content, 6, mtime=0) if is_gzip else content)
        lines.clear()

    number = held = 0
    for path, text in read_texts(find_files(folders)):
        record = {"id": f"{documents:06d}", "text": text, "path": str(path)}
        lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        documents, size, held = documents + 1, size + len(text.encode()), held + len(lines[-1])
        if held >= FILE_BYTES:
            flush(number)
            number, held = number + 1, 0
        if size >= megabytes * 1e6:
            break
    if lines:
        flush(number)
    return documents, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--megabytes", type=float, default=192)
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS))
    parser.add_argument("--gzip", action="store_true")
    arguments = parser.parse_args()
    documents, size = write(arguments.output, arguments.folders, arguments.megabytes, arguments.gzip)
    print(json.dumps({"documents": documents, "bytes": size}))


if __name__ == "__main__":
    main()
