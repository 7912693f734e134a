"""Labelled text for benchmarks/judgements.py, made from Debian packages: nothing here is committed or made up.

Packages are downloaded once with apt-get and unpacked into a folder, without installing them. Labels come from where a
text stands, not from reading it: a man page in `man/fr` is French, a dictionary article is encyclopedic prose, a
licence or a table of contents is boilerplate. Every document names its source, and no source is in two splits.
"""

import gzip
import html
import pathlib
import re
import subprocess
from collections import Counter
from typing import NamedTuple

LANGUAGES = "cs da de el es fi fr hu id it ja mk nb nl pl pt_BR ro ru sr sv tr uk vi zh_CN".split()
PACKAGES = [
    "manpages",
    "manpages-dev",
    *(f"manpages-{language.lower().replace('_cn', '').replace('_', '-')}" for language in LANGUAGES),
    *(f"debian-reference-{language}" for language in "en de fr es it pt id ja zh-cn".split()),
    "debian-handbook",
    "dict-foldoc",
    "dict-gcide",
    "dict-jargon",
    "dict-devil",
    "doc-debian",
    "fortunes",
    "fortunes-it-off",
    "fortunes-es-off",
]
MIN_CHARACTERS, MAX_CHARACTERS = 200, 1_000  # of a document for language identification


class Labelled(NamedTuple):
    """One document of the held-out sets."""

    text: str
    label: str
    source: str


def download(folder: pathlib.Path) -> pathlib.Path:
    """Downloads and unpacks `PACKAGES` into `folder`, once; returns the root of the unpacked files."""
    packages, root = folder / "packages", folder / "root"
    packages.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PACKAGES if not list(packages.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-qq", *missing], cwd=packages, check=True)
    for name in PACKAGES:
        done = root / f".{name}"
        if not done.exists():
            subprocess.run(["dpkg-deb", "-x", next(packages.glob(f"{name}_*.deb")), root], check=True)
            done.touch()
    return root


def language_documents(root: pathlib.Path, per_language: int) -> list[Labelled]:
    """Runs of whole paragraphs of translated man pages, 200–1,000 characters, at most three a page.

    Translations leave some paragraphs in English; a paragraph that stands word for word in the English pages or in
    those of two languages is such a one, and is left out.
    """
    man = root / "usr/share/man"
    folders = {"en": sorted(man.glob("man*")), **{code: [man / code] for code in LANGUAGES}}
    pages = {
        code: {path: paragraphs(path) for folder in paths for path in sorted(folder.rglob("*.gz")) if path.is_file()}
        for code, paths in folders.items()
    }
    seen = Counter(text for found in pages.values() for text in {text for page in found.values() for text in page})
    documents = []
    for code, found in pages.items():
        label = {"pt_BR": "pt", "zh_CN": "zh"}.get(code, code)
        chunks = []
        for path, page in found.items():
            whole = [text for text in page if seen[text] == 1]
            chunks += [Labelled(text, label, str(path.relative_to(root))) for text in _runs(whole)[:3]]
        step = max(1, len(chunks) // per_language)
        documents += chunks[::step][:per_language]
    return documents


def _runs(texts: list[str]) -> list[str]:
    runs, run = [], ""
    for text in texts:
        run = f"{run}\n\n{text}" if run else text
        if len(run) >= MIN_CHARACTERS:
            runs.append(run[:MAX_CHARACTERS])
            run = ""
    return runs


def paragraphs(path: pathlib.Path) -> list[str]:
    """The paragraphs of running text of a man page: without headings, code, synopses and formatting."""
    raw = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    if raw.startswith(".so "):
        return []
    texts, lines, is_code = [], [], False
    for line in raw.splitlines():
        request = re.match(r"[.']\s*(\S+)\s*(.*)", line)
        name, arguments = request.groups() if request else ("", line)
        if name in ("nf", "EX", "TS", "Bd", "if", "ie"):
            is_code = True
        elif name in ("fi", "EE", "TE", "Ed", "PP"):
            is_code = False
        if name in FONTS:
            lines.append(arguments.replace('"', ""))
        elif name:
            texts.append(" ".join(lines))
            lines = []
        elif not is_code:
            lines.append(line)
    texts.append(" ".join(lines))
    return [text for text in map(_plain, texts) if _is_prose(text)]


FONTS = {"B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "R", "SM"}


def _plain(text: str) -> str:
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[+-]?\d|\\[&:%/,|^]|\\[\"#].*", "", text)
    text = re.sub(r"\\[- ]", lambda match: match[0][1], text)
    text = re.sub(r"\\\[u([0-9A-F]{4,5})\]", lambda match: chr(int(match[1], 16)), text)
    text = re.sub(r"\\(\(..|\[[^\]]*\]|\*\[[^\]]*\]|\*\(..|\*.|.)", "", text)
    return re.sub(r"\s+", " ", text).strip()


def _is_prose(text: str) -> bool:
    """At least a sentence's length, most of it letters; half of that for scripts that write a word with two signs."""
    wide = sum(ord(character) > 0x2E7F for character in text)
    letters = sum(character.isalpha() for character in text)
    return len(text) + wide >= 80 and letters >= 0.6 * len(text)
