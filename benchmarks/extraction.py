"""How well the rules of the readers judge real material: main text of pages, licences, files that nobody wrote.

    python benchmarks/extraction.py pages --articles=NEWSPAPER4K --pages=READABILITY
    python benchmarks/extraction.py licences [--copyright=/usr/share/doc]
    python benchmarks/extraction.py files FOLDER...

`pages` needs unpacked sources, which hold real pages and their main text: the sdist of newspaper4k (`pip download
--no-deps --no-binary :all: newspaper4k`) and a checkout of mozilla/readability. `licences` reads the machine-readable
copyright files of installed Debian packages. `files` takes folders with unpacked packages (site-packages, npm and
Debian source packages). Prints JSON: the measure, its baseline's and the number of cases, and ends with exit code 1
where one is below its floor or its baseline. Nothing is written.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from pretrain.core.errors import exit_code
from pretrain.curate.code_rules import CodeRules, is_marked_generated
from pretrain.curate.html_text import decode, read_page
from pretrain.curate.languages import language_of
from pretrain.curate.licences import PERMISSIVE_LICENCES, is_allowed, licence_of, normalise
from pretrain.curate.source_code import decode_source

SHINGLE = 4  # words of an n-gram that texts are compared by
MIN_WORDS = 40  # of a page's main text
MIN_PAGE_BYTES = 10_000  # smaller ones of readability's are made for one test of its parser and are no real pages


def in_test(name: str) -> bool:
    """Half of all names, by a hash: what rules were written with is in the other half."""
    return hashlib.blake2b(name.encode()).digest()[0] % 2 == 1


class TagStripper(HTMLParser):
    """The baseline for pages: all text outside of tags, scripts and styles."""

    def __init__(self):
        super().__init__()
        self.pieces: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag, attributes):
        self.pieces.append(" ")
        if self._inside is None and tag in ("script", "style", "noscript", "template"):
            self._inside = tag

    def handle_endtag(self, tag):
        self.pieces.append(" ")
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside is None:
            self.pieces.append(data)


def strip_tags(html: str) -> str:
    """Text by the baseline."""
    stripper = TagStripper()
    stripper.feed(html)
    stripper.close()
    return "".join(stripper.pieces)


def shingles(text: str) -> Counter:
    """Word 4-grams with their counts."""
    words = re.findall(r"\w+", text.lower())
    return Counter(tuple(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1)))


def f1(found: str, truth: str) -> float:
    """Agreement of two texts in word 4-grams."""
    one, other = shingles(found), shingles(truth)
    common = sum((one & other).values())
    return 2 * common / (sum(one.values()) + sum(other.values()))


def real_pages(articles: Path, pages: Path) -> Iterator[tuple[str, bytes, str]]:
    """(set, page, main text)."""
    for path in sorted((articles / "tests/data/txt").glob("*.txt")):
        page = articles / "tests/data/html" / f"{path.stem}.html"
        if page.exists():
            yield "newspaper4k", page.read_bytes(), path.read_text()
    for folder in sorted((pages / "test/test-pages").iterdir()):
        page, expected = folder / "source.html", folder / "expected.html"
        if page.exists() and page.stat().st_size >= MIN_PAGE_BYTES:
            yield "readability", page.read_bytes(), strip_tags(expected.read_text())


def measure_pages(articles: Path, pages: Path) -> dict:
    """Mean F1 of the main text, and of the tag stripper's, on each set."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for name, content, truth in real_pages(articles, pages):
        if len(truth.split()) < MIN_WORDS and len(truth) < 5 * MIN_WORDS:
            continue
        ours, baseline = read_page(content).text, strip_tags(decode(content, is_html=True)[0])
        scores.setdefault(name, []).append((f1(ours, truth), f1(baseline, truth)))
    scores["all"] = [pair for pairs in scores.values() for pair in pairs]
    return {
        name: {
            "pages": len(pairs),
            "f1": round(sum(pair[0] for pair in pairs) / len(pairs), 3),
            "tag_stripper": round(sum(pair[1] for pair in pairs) / len(pairs), 3),
        }
        for name, pairs in scores.items()
    }


# Debian's short names of what `licence_of` knows, after upper case and without a final ".0".
DEBIAN_NAMES = {
    "EXPAT": "MIT",
    "MIT": "MIT",
    "MIT-0": "MIT-0",
    "BSD-2-CLAUSE": "BSD-2-Clause",
    "BSD-3-CLAUSE": "BSD-3-Clause",
    "BSD-4-CLAUSE": "BSD-4-Clause",
    "APACHE-2": "Apache-2.0",
    "ISC": "ISC",
    "CC0-1": "CC0-1.0",
    "ARTISTIC": "Artistic-1.0-Perl",
    "ARTISTIC-2": "Artistic-2.0",
    "ZLIB": "Zlib",
    "FSFAP": "FSFAP",
    "FSFULLR": "FSFULLR",
    "POSTGRESQL": "PostgreSQL",
    "OFL-1.1": "OFL-1.1",
    "BSL-1": "BSL-1.0",
    "MPL-1.1": "MPL-1.1",
    "MPL-2": "MPL-2.0",
    "EPL-1": "EPL-1.0",
    "UNLICENSE": "Unlicense",
    "PSF-2": "PSF-2.0",
    "CC-BY-3": "CC-BY-3.0",
    "CC-BY-4": "CC-BY-4.0",
    "CC-BY-SA-3": "CC-BY-SA-3.0",
    "CC-BY-SA-4": "CC-BY-SA-4.0",
    "CDDL": "CDDL-1.0",
    "WTFPL": "WTFPL",
    "0BSD": "0BSD",
}
NAMES = ("LGPL", "AGPL", "GPL", "Apache", "MPL", "BSD", "MIT", "ISC", "Artistic", "CC0", "zlib", "public domain")
LONG_NAMES = {"General Public License": "GPL", "Lesser General Public": "LGPL", "Mozilla Public": "MPL"}


def from_debian(name: str) -> str | None:
    """The SPDX identifier of a Debian short name; None for licences with exceptions and those that have none."""
    short = re.sub(r"\.0(?=\+|$)", "", name.strip().upper())
    gnu = re.fullmatch(r"(A?GPL|LGPL|GFDL)-(\d)(?:\.(\d))?(\+)?", short)
    if gnu:
        return f"{gnu[1]}-{gnu[2]}.{gnu[3] or 0}-{'or-later' if gnu[4] else 'only'}"
    return DEBIAN_NAMES.get(short)


def debian_licences(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(package, SPDX identifier, text) of each licence paragraph of machine-readable copyright files."""
    for path in sorted(folder.glob("*/copyright")):
        content = path.read_text(errors="replace")
        if not content.startswith("Format: "):
            continue
        for match in re.finditer(r"^License: *(\S.*)\n((?:[ \t].*\n?)+)", content, re.MULTILINE):
            label, text = from_debian(match[1]), re.sub(r"^[ \t]+\.?", "", match[2], flags=re.MULTILINE)
            if label is not None and len(text) > 150:
                yield path.parent.name, label, text


def first_name(text: str) -> str | None:
    """The baseline for licences: the first name of a family in the text, or the first grant that is nearly a name."""
    found = [(text.find(name), name) for name in NAMES if name in text]
    found += [(text.find(name), short) for name, short in LONG_NAMES.items() if name in text]
    return min(found)[1] if found else None


def measure_licences(folder: Path, is_test: bool, is_listed: bool) -> dict:
    """Share of different texts whose exact identifier is found; and of the families, which the baseline can name."""
    seen, right, family_right, baseline_right, cases = set(), 0, 0, 0, 0
    allowed = rightly = 0
    by_label: dict[str, list[int]] = {}
    for package, label, text in debian_licences(folder):
        key = normalise(text)
        if key in seen or in_test(key) != is_test:
            continue
        seen.add(key)
        found, family = licence_of(text), label.split("-")[0].upper()
        cases, right = cases + 1, right + (found == label)
        family_right += (found or "").split("-")[0].upper() == family
        baseline_right += (first_name(text) or "").upper() == family
        by_label.setdefault(label, [0, 0])[found == label] += 1
        if found is not None and is_allowed(found, set(PERMISSIVE_LICENCES)):
            allowed, rightly = allowed + 1, rightly + (label in PERMISSIVE_LICENCES)
        if is_listed and found != label:
            print(f"{package}: {label} found as {found}: {key[:200]}")
    return {
        "texts": cases,
        "accuracy": round(right / cases, 3),
        "family_accuracy": round(family_right / cases, 3),
        "family_by_first_name": round(baseline_right / cases, 3),
        "permissive": {"found": allowed, "precision": round(rightly / allowed, 3)},
        "by_licence": {label: f"{good} of {bad + good}" for label, (bad, good) in sorted(by_label.items())},
    }


# What tools call their output; a file is generated by its name here, and the rule has to tell from its text alone.
GENERATED_FILES = re.compile(
    r"(?:.*/)?(?:.*_pb2(?:_grpc)?\.py|.*_pb\.js|.*\.pb\.(?:h|cc)|gen_\w+_ops\.py|(?:parsetab|lextab|yacctab)\.py|configure"
    r"|Makefile\.in|aclocal\.m4|.*\.tab\.[ch]|lex\.yy\.c|moc_.*\.cpp|.*_(?:ops|enum)_gen\.py|.*\.generated\..*"
    r"|.*_wrap\.(?:c|cc|cpp|cxx)|unicode\d+-\d+-\d+\.py)|.*/_generated/.*"
)
# Files of other names that were looked at by hand: their projects' build makes them.
GENERATED_BY_HAND = re.compile(
    r"phonenumbers/(?:short)?data/.*|keras/.*__init__\.py|tokenizers/.*(?:__init__\.py|\.pyi)|.*/_?version\.py"
    r"|.*/pygments/\w+/_mapping\.py|pycparser/c_ast\.py|editdistance/bycython\.cpp|idna/(?:uts46data|idnadata)\.py"
    r"|.*/icu4c/source/common/unormimp\.h|pyasn1_modules/rfc\d+\.py|marked/package/lib/.*"
)
MINIFIED_BY_HAND = re.compile(
    r".*\.prod\.(?:c?js|mjs)|antlr4/package/dist/.*|google-protobuf/package/google-protobuf\.js|marked/package/lib/marked\..*js"
)
PER_PACKAGE = 25  # files of a kind, of one package


def source_files(folders: list[Path]) -> Iterator[tuple[str, str, str, str]]:
    """(package, path in it, text, language) of the source files of packages, in the order of a hash of their path."""
    for folder in folders:
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        for path in sorted(paths, key=lambda path: hashlib.blake2b(str(path).encode()).digest()):
            inner = path.relative_to(folder).as_posix()
            language = language_of(inner)
            if language is None or not 200 < path.stat().st_size < 2_000_000:
                continue
            text, _ = decode_source(path.read_bytes())
            if text is not None:
                yield inner.split("/")[0], inner, text, language


def by_line_length(text: str) -> bool:
    """The baseline for generated and minified files, from The Stack: long lines, or few letters and digits."""
    lines = text.splitlines() or [""]
    letters = sum(map(str.isalnum, text))
    return max(map(len, lines)) > 1000 or sum(map(len, lines)) > 100 * len(lines) or letters < 0.25 * len(text)


def scores(pairs: list[tuple[bool, bool]]) -> dict:
    """Precision, recall and F1 of (found, true) pairs."""
    found, true = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    both = sum(all(pair) for pair in pairs)
    return {
        "precision": round(both / max(1, found), 3),
        "recall": round(both / max(1, true), 3),
        "f1": round(2 * both / max(1, found + true), 3),
    }


def measure_files(folders: list[Path], is_test: bool, is_listed: bool) -> dict:
    """Generated, minified and vendored files of packages of one half, each against its baseline."""
    rules, taken = CodeRules(), Counter()
    cases: dict[str, list[tuple[bool, bool, bool]]] = {"generated": [], "minified": [], "vendored": []}
    everything = list(source_files(folders))
    files = [file for file in everything if in_test(file[0]) == is_test]
    for package, path, text, language in files:
        name = path.rpartition("/")[2]
        is_minified = re.fullmatch(r".*[.-]min\.(?:m?js|css)", name) is not None
        is_minified = is_minified or MINIFIED_BY_HAND.fullmatch(path) is not None
        is_generated = GENERATED_FILES.fullmatch(path) is not None
        is_by_hand = GENERATED_BY_HAND.fullmatch(path) is not None and is_marked_generated(text)
        is_generated = is_generated or is_by_hand
        kind = "minified" if is_minified else "generated" if is_generated else "written"
        taken[package, kind] += 1
        if taken[package, kind] <= PER_PACKAGE:
            if not is_minified:
                found = is_marked_generated(text)
                cases["generated"].append((found, by_line_length(text), is_generated))
                if is_listed and found != is_generated:
                    print(f"{path}: {'marked' if found else 'not marked'} as generated")
            if language in ("javascript", "css"):
                found = (rules.find("a", text, language) or ("",))[0] == "minified"
                if is_minified or not is_generated:
                    cases["minified"].append((found, by_line_length(text), is_minified))
                    if is_listed and found != is_minified:
                        print(f"{path}: {'' if found else 'not '}found minified")
    for path, is_vendored in copies(everything if is_test else []):
        found = (rules.find(path, "", None) or ("",))[0] == "vendored"
        simple = re.search(r"(?:^|/)(?:node_modules|vendor)/", path) is not None
        cases["vendored"].append((found, simple, is_vendored))
        if is_listed and found != is_vendored:
            print(f"{path}: {'' if found else 'not '}found vendored")
    return {
        name: {
            "files": len(triples),
            "positive": sum(triple[2] for triple in triples),
            "rule": scores([(triple[0], triple[2]) for triple in triples]),
            "baseline": scores([(triple[1], triple[2]) for triple in triples]),
        }
        for name, triples in cases.items()
    }


def copies(files: list[tuple[str, str, str, str]]) -> Iterator[tuple[str, bool]]:
    """Files of one package that lie in another as well, in any version: (path, whether it is the copy).

    A package's own file lies at PACKAGE/REST; the copy at OTHER/…/PACKAGE/REST, with at least half of its lines.
    """
    lines = {path: set(text.splitlines()) for _, path, text, _ in files}
    originals = set()
    for package, path, _, _ in files:
        parts = path.split("/")
        for start in range(1, len(parts) - 1):
            original = "/".join(parts[start:])
            if original in lines and parts[start] != package:
                common = len(lines[path] & lines[original])
                if common >= 0.5 * max(len(lines[path]), len(lines[original])):
                    yield path, True
                    originals.add(original)
    yield from ((path, False) for path in sorted(originals))


# What a change may not fall below.
EXTRACTION_GAIN = 0.15  # over the tag stripper
LICENCE_FLOORS = {"accuracy": 0.85, "family_accuracy": 0.93}
PERMISSIVE_FLOOR = 0.95
FILE_FLOORS = {"generated": 0.93, "minified": 0.95, "vendored": 0.95}


def misses(command: str, result: dict) -> list[str]:
    """What is below its floor, in words."""
    if command == "pages":
        judged = [("main text", result["all"]["f1"], result["all"]["tag_stripper"] + EXTRACTION_GAIN)]
    elif command == "licences":
        judged = [(name, result[name], floor) for name, floor in LICENCE_FLOORS.items()]
        judged.append(("family against first name", result["family_accuracy"], result["family_by_first_name"]))
        judged.append(("permissive", result["permissive"]["precision"], PERMISSIVE_FLOOR))
    else:
        judged = [(name, result[name]["rule"]["f1"], floor) for name, floor in FILE_FLOORS.items()]
        judged += [(f"{name} against baseline", result[name]["rule"]["f1"], result[name]["baseline"]["f1"])
                   for name in FILE_FLOORS]  # fmt: skip
    return [f"{name}: {value:.3f} is below {floor:.3f}" for name, value, floor in judged if value < floor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pages = commands.add_parser("pages")
    pages.add_argument("--articles", type=Path, required=True)
    pages.add_argument("--pages", type=Path, required=True)
    licences = commands.add_parser("licences")
    licences.add_argument("--copyright", type=Path, default=Path("/usr/share/doc"))
    licences.add_argument("--development", action="store_true", help="the half that rules are written with")
    licences.add_argument("--list", action="store_true", help="show every mistake")
    files = commands.add_parser("files")
    files.add_argument("folders", nargs="+", type=Path)
    files.add_argument("--development", action="store_true")
    files.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "pages":
        result = measure_pages(arguments.articles, arguments.pages)
    elif arguments.command == "licences":
        result = measure_licences(arguments.copyright, not arguments.development, arguments.list)
    else:
        result = measure_files(arguments.folders, not arguments.development, arguments.list)
    missed = misses(arguments.command, result)
    print(json.dumps(result | {"missed": missed}, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "extraction"))
