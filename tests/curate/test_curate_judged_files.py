"""How well readers judge real material, in small: packages that are installed wherever tests run, with floors.

The whole measurement, on material that has to be downloaded, is benchmarks/extraction.py and benchmarks/book_matter.py.
"""

import importlib.metadata
import pathlib
import re
import sysconfig

import numpy as np
import pip
import pyarrow
import pytest
from corpora import SENTENCE
from google import protobuf

from pretrain.curate.books import BookMatter
from pretrain.curate.code_rules import CodeRules, is_marked_generated
from pretrain.curate.html_text import read_page
from pretrain.curate.licences import licence_of

SITE = pathlib.Path(sysconfig.get_paths()["purelib"])
STDLIB = pathlib.Path(sysconfig.get_paths()["stdlib"])


def f1(found: list[bool], truth: list[bool]) -> float:
    """Of those found, against those true."""
    found, truth = np.array(found), np.array(truth)
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def stated_licences() -> list[tuple[str, str]]:
    """(SPDX identifier that a package states, text of its only licence file) of installed packages."""
    cases = []
    for package in importlib.metadata.distributions():
        stated = package.metadata.get("License-Expression") or ""
        names = [
            file for file in package.files or () if re.search(r"(?i)dist-info/(.*/)?(licen[cs]e|copying)", str(file))
        ]
        if stated and " " not in stated and len(names) == 1:
            cases.append((stated, pathlib.Path(package.locate_file(names[0])).read_text(errors="replace")))
    return cases


def test_licence_files_are_what_their_packages_state():
    cases = stated_licences()
    assert len(cases) >= 10
    assert np.mean([licence_of(text) == stated for stated, text in cases]) >= 0.85


def test_what_a_compiler_wrote_is_told_from_what_people_wrote_by_the_text_alone():
    generated = sorted(pathlib.Path(protobuf.__file__).parent.rglob("*_pb2.py"))
    generated += [STDLIB / name for name in ("stringprep.py", "token.py")]  # by Python's own build
    written = [*sorted(pathlib.Path(pyarrow.__file__).parent.glob("*.py")), *sorted(STDLIB.glob("*.py"))]
    written = [path for path in written if path not in generated and path.name != "_generated_version.py"]
    truth = [True] * len(generated) + [False] * len(written)
    found = [is_marked_generated(path.read_text("utf-8", "replace")) for path in generated + written]
    assert len(generated) >= 10 and len(written) >= 150
    assert f1(found, truth) >= 0.93


def test_copies_of_other_packages_are_told_by_their_path():
    root = pathlib.Path(pip.__file__).parent
    paths = [path.relative_to(root.parent).as_posix() for path in root.rglob("*.py")]
    truth = ["/_vendor/" in path and path != "pip/_vendor/__init__.py" for path in paths]
    found = [(CodeRules().find(path, "", None) or ("",))[0] == "vendored" for path in paths]
    assert sum(truth) >= 100 and len(truth) - sum(truth) >= 100
    assert f1(found, truth) >= 0.95


def test_minified_styles_and_scripts_are_told_from_the_same_as_written():
    written = [
        "\n".join(f".row-{i} {{\n    color: #{i:06x};\n    margin: {i}px;\n}}" for i in range(60)),
        "\n".join(f"function add{i}(left, right) {{\n    return left + right + {i};\n}}" for i in range(60)),
        "\n".join(f"// {SENTENCE}\nlet value{i} = {i};" for i in range(60)),
    ]
    bare = [re.sub(r"\s*([{};:,+=()])\s*", r"\1", re.sub(r"//.*\n", "", text)) for text in written]
    minified = [text.replace("\n", "") for text in bare]
    found = [
        (CodeRules().find("a", text, language) or ("",))[0] == "minified"
        for texts in (written, minified)
        for text, language in zip(texts, ("css", "javascript", "javascript"), strict=True)
    ]
    assert f1(found, [False] * 3 + [True] * 3) >= 0.95


def words(text: str) -> set[tuple[str, ...]]:
    """Word 4-grams."""
    found = re.findall(r"\w+", text.lower())
    return set(zip(found, found[1:], found[2:], found[3:], strict=False))


@pytest.mark.parametrize("tag", ["article", "main", "div class='content'"])
def test_main_text_is_found_better_than_by_a_tag_stripper(tag):
    notes = [line for line in (STDLIB / "pydoc_data" / "topics.py").read_text().splitlines() if len(line) > 60][:400]
    scores = []
    for start in range(0, 300, 30):
        body = [" ".join(re.findall(r"[A-Za-z]+", line)) for line in notes[start : start + 30]]
        menu = "".join(f"<li><a href='/{i}'>Section {i} of the manual and its index</a></li>" for i in range(30))
        page = f"<html><body><nav><ul>{menu}</ul></nav><{tag}><h1>Notes</h1>"
        page += "".join(f"<p>{'. '.join(body[i : i + 5])}.</p>" for i in range(0, 30, 5))
        page += f"</{tag.split()[0]}><footer><ul>{menu}</ul> Copyright, all rights reserved.</footer></body></html>"
        truth = words("Notes " + " ".join(body))
        answers = [words(read_page(page.encode()).text), words(re.sub(r"<[^>]*>", " ", page))]
        scores.append([2 * len(truth & found) / (len(truth) + len(found)) for found in answers])
    ours, stripper = np.mean(scores, axis=0)
    assert ours >= stripper + 0.15
    assert ours >= 0.9


HEADER = "The Project Gutenberg EBook of A Book\n\nTitle: A Book\n\n*** START OF THIS PROJECT GUTENBERG EBOOK{} ***\n"
CREDIT = "\n\nProduced by A Volunteer and the Online\nDistributed Proofreading Team\n\n"
CONTENTS = {
    "pages": "CONTENTS\n\n    I. THE SHIP      1\n   II. THE STORM    20\n  III. THE SHORE    41\n",
    "parts": "CONTENTS OF VOLUME II.\n\nFIRST PART.\n\n1. To A.\n2. To the Same\n\n\nPART 2.\n\n3. To B.\n4. To C.\n",
    "list": "Contents\n\n  * Preface\n  * Guide\n      * Installing\n      * Using\n  * Index\n",
    "loose": "CONTENTS.\n\nCHAPTER\n\n I.  THE SHIP\n\nII.  THE STORM\n\n\nNOTES.\n\n I.  The Trail\n\nII.  The Ride\n",
    "pictures": "CONTENTS.\n\nI. A\nII. B\nIII. C\n\n\n\nLIST OF ILLUSTRATIONS.\n\nA village\n\nA chief\n\nA bear\n",
}
NOTES = {
    "notes": "\n\nTRANSCRIBER'S NOTES\n\nItalic text is marked.\n\nPage 10  a hyphen is missing\n\nPage 12  a comma\n",
    "errata": "\n\nErrata noted by transcriber:\n\n... the end\n  _full stop missing_\n\n",
    "none": "",
}
FOOTER = "\n\nEnd of Project Gutenberg's A Book\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\nA licence.\n"


@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("title", [" A BOOK", " A BOOK\nOF MANY WORDS"])
def test_what_stands_around_a_book_goes_and_nothing_else(title, contents, notes):
    front = "A BOOK\n\nby\n\nSOMEBODY\n\n\n\nPREFACE\n\n" + SENTENCE * 8 + "\n\n\n\n"
    chapters = "".join(f"\n\n\n\nCHAPTER {number}\n\nTHE SHIP\n\n{SENTENCE * 60}" for number in ("I", "II", "III"))
    text = HEADER.format(title) + CREDIT + front + contents + chapters + notes + FOOTER
    for span in reversed(BookMatter().find(text)):
        text = text[: span.start] + text[span.end :]
    assert text.split() == (front + chapters).split()
