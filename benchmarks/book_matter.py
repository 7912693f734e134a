"""How well `BookMatter` tells a work from what publishers and transcribers put around it, on real e-texts.

    for name in (see BOOKS): git clone --depth=1 https://github.com/GITenberg/NAME FOLDER/NAME
    python benchmarks/book_matter.py FOLDER [--list]

Fourteen books of Project Gutenberg, from 2002 to 2010, each with the lines that are none of the work: labelled by hand
from the books, before the rules had seen any of them. To the work belong its title page, prefaces, notes and the
advertisements of its first publisher; not to it the e-text's header, credits, licence, transcriber's notes, and
tables of contents. Filled lines are counted, each book alike. Half of the books are held out: mistakes in the others
were looked at and the rules changed. The rule of everybody else, which is the baseline, is to cut at the START and END
markers. Prints JSON; ends with exit code 1 below a floor.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from pretrain.core.errors import exit_code
from pretrain.curate.books import BookMatter

# {folder: (first line, last line) of each stretch that is none of the work, from 1; None: to the end}
BOOKS = {
    "Beethoven-s-Letters-1790-1826-Volume-2_13272": ((1, 26), (69, 349), (8942, None)),
    "Charles-Dickens-and-Music_16595": ((1, 25), (132, 161), (6263, None)),
    "Debian-GNULinux-Guide-to-Installation-and-Usage_6527": ((1, 40), (73, 247), (8965, None)),
    "Jack-Sheppard--A-Romance_16215": ((1, 39), (63, 151), (1862, 1862), (19382, None)),
    "Katrine--A-Novel_14263": ((1, 25), (85, 116), (7501, None)),
    "Legend-Land-Vol.-1Railway._20170": ((1, 28), (78, 93), (1245, None)),
    "Modern-Icelandic-PlaysEyvind-of-the-Hills--The-Hraun-Farm_21937": (
        *((1, 52), (127, 131), (7958, 7966), (8150, None)),
    ),
    "Morning-Bells--Or-Waking-Thoughts-for-Little-Ones_11563": ((1, 27), (50, 86), (1614, None)),
    "News-from-Nowhere--Or-An-Epoch-of-Rest--13-Being-Some-Chapters-from-a-Utopian-Romance_3261": (
        *((1, 35), (7774, None)),
    ),
    "The-Complete-Angler-1653_9198": ((1, 28), (4270, None)),
    "The-Devil-s-Dictionary_972": ((1, 25), (9200, None)),
    "The-Little-Colonel-s-Hero_15122": ((1, 25), (147, 182), (6933, None)),
    "The-Log-School-House-on-the-Columbia_14881": ((1, 39), (112, 201), (5784, None)),
    "Two-Latin-Plays-for-High-School-Students_31894": ((1, 36), (102, 115), (1486, None)),
}
DEVELOPMENT = {"13272", "6527", "14263", "21937", "3261", "972", "14881"}
PARTS = ("held out", "development")
FLOORS = {"f1": 0.97, "f1_between_markers": 0.85, "work_kept": 0.999}


def read(folder: Path, name: str) -> str:
    """The e-text of a checkout, ASCII where there is such a version, as `BookMatter` is given it."""
    number = name.rpartition("_")[2]
    path = next(path for suffix in ("", "-8") if (path := folder / name / f"{number}{suffix}.txt").exists())
    return path.read_bytes().decode("latin-1").replace("\r\n", "\n")


def in_spans(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which lines lie in one of the spans of characters by more than half."""
    ends = np.cumsum([len(line) + 1 for line in text.split("\n")])
    covered = np.zeros(len(text) + 1, np.int64)
    for start, end in spans:
        covered[start:end] = 1
    sums = np.concatenate([[0], np.cumsum(covered)])
    starts = np.concatenate([[0], ends[:-1]])
    return sums[np.minimum(ends - 1, len(text))] - sums[starts] > 0.5 * (ends - 1 - starts)


def labelled(stretches: tuple, lines: int) -> np.ndarray:
    """The same from a book's label."""
    is_matter = np.zeros(lines, bool)
    for first, last in stretches:
        is_matter[first - 1 : last] = True
    return is_matter


def between_markers(text: str) -> list[tuple[int, int]]:
    """The baseline: all before the START marker's line and from the END marker's line on."""
    start = re.search(r"^\*\*\* ?START OF.*\n(?:.*\*\*\*\n)?", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF.*", text, re.MULTILINE)
    return [(0, start.end() if start else 0), (end.start() if end else len(text), len(text))]


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """Of marked lines; 1 where there is nothing to mark and nothing marked."""
    marked = found.sum() + truth.sum()
    return float(2 * (found & truth).sum() / marked) if marked else 1.0


def measure(folder: Path, is_development: bool, is_listed: bool) -> dict[str, dict[str, float]]:
    """Means over one half of the books, for the rules and for the baseline."""
    rows: dict[str, list[tuple[float, float, float]]] = {"rules": [], "markers": []}
    for name, stretches in BOOKS.items():
        if (name.rpartition("_")[2] in DEVELOPMENT) != is_development:
            continue
        text = read(folder, name)
        lines = text.split("\n")
        is_filled = np.array([bool(line.strip()) for line in lines])
        truth, outside = labelled(stretches, len(lines)), in_spans(text, between_markers(text))
        guesses = {"rules": [(span.start, span.end) for span in BookMatter().find(text)]}
        guesses["markers"] = between_markers(text)
        for way, spans in guesses.items():
            found = in_spans(text, spans)
            inside = is_filled & ~outside
            kept = 1 - (found & ~truth & is_filled).sum() / (~truth & is_filled).sum()
            rows[way].append((f1(found[is_filled], truth[is_filled]), f1(found[inside], truth[inside]), float(kept)))
            if is_listed and way == "rules":
                print(name, np.round(rows[way][-1], 3))
                for row in np.flatnonzero((found != truth) & is_filled):
                    print(f"  {'taken' if found[row] else 'left '} {row + 1}: {lines[row].strip()[:80]}")
    return {
        way: dict(zip(FLOORS, np.mean(values, axis=0).round(4).tolist(), strict=True)) for way, values in rows.items()
    }


def main() -> int:
    """Prints the measures, and says which miss their floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkouts are")
    parser.add_argument("--list", action="store_true", help="show every line that is judged wrongly")
    arguments = parser.parse_args()
    found = {part: measure(arguments.folder, part == "development", arguments.list) for part in PARTS}
    ours, baseline = (found["held out"][way] for way in ("rules", "markers"))
    missed = [name for name, floor in FLOORS.items() if ours[name] < floor]
    missed += [f"{name}: baseline" for name in FLOORS if name != "work_kept" and ours[name] <= baseline[name]]
    print(json.dumps(found | {"floors": FLOORS, "missed": missed}, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "book_matter"))
