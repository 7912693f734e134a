"""Recall of planted leaks by kind, false hits on clean documents, and the time of a whole run.

    python benchmarks/decontamination.py CORPUS [--items=500] [--workers=2] [--seed=0]

CORPUS: a folder of JSONL with `id` and `text`, as `benchmarks/real_text.py` writes. One document in ten is taken out of
the corpus, and a passage of 30 to 60 words of it becomes a benchmark item, unless the rest shares an n-gram of 13 words
with it by a plain search that has no code in common with ours (licences, copies). Each item is planted in the middle of
six documents of the rest, once a kind:

    verbatim, recased (upper, lower or title), respaced (runs of blanks, tabs and line feeds, some blanks lost),
    repunctuated (all punctuation lost, commas and quotes put in at random), split (across lines of 40 characters, with
    hyphens in words), changed (one word in five replaced)

All other documents are clean. A hit on one of them is false, unless a plain search for the letters of the item's
n-grams, however divided into words, confirms it.
"""

import argparse
import json
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

WORDS = 13
PUNCTUATION = str.maketrans("", "", string.punctuation)


def recased(text: str, rng: random.Random) -> str:
    return rng.choice([str.upper, str.lower, str.title])(text)


def respaced(text: str, rng: random.Random) -> str:
    spaces = ["  ", "\t", "\n", " \n\n ", "\u00a0", "   ", " ", ""]
    return "".join(word + rng.choice(spaces) for word in text.split())


def repunctuated(text: str, rng: random.Random) -> str:
    words = text.translate(PUNCTUATION).split()
    return " ".join(
        rng.choice(["{}", "{},", "\u201c{}\u201d", "({})", "{}\u2014", "{}."]).format(word) for word in words
    )


def split(text: str, rng: random.Random) -> str:
    flat = " ".join(text.split())
    lines = [flat[start : start + 40] for start in range(0, len(flat), 40)]
    ends = [
        "-\n" if line[-1:].isalpha() and after[:1].isalpha() else "\n"
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
    ]
    return "".join(line + end for line, end in zip(lines, ends, strict=True))


def changed(text: str, rng: random.Random) -> str:
    words = text.split()
    for position in rng.sample(range(len(words)), round(len(words) / 5)):
        words[position] = rng.choice(words) + "x"
    return " ".join(words)


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda text, rng: text,
    "recased": recased,
    "respaced": respaced,
    "repunctuated": repunctuated,
    "split": split,
    "changed": changed,
}


def plain_ngrams(text: str) -> set[tuple[str, ...]]:
    """Word n-grams by the plainest rules: lower case, no ASCII punctuation, split at white space."""
    words = text.lower().translate(PUNCTUATION).split()
    return set(zip(*(words[start:] for start in range(WORDS)), strict=False))


def holds(text: str, item: str) -> bool:
    """Whether the letters and digits of 13 words of an item stand in a text, found by plain substring search."""
    letters = re.sub(r"[\W_]+", "", text.lower())
    return any("".join(ngram) in letters for ngram in plain_ngrams(re.sub(r"[^\w\s]|_", "", item)))


def passage(text: str, rng: random.Random) -> str | None:
    """30 to 60 words from the middle of a text, mostly letters; None where there is no such passage."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) < 200:
        return None
    first, size = rng.randrange(50, len(spans) - 120), rng.randrange(30, 61)
    found = text[spans[first][0] : spans[first + size - 1][1]]
    letters = sum(character.isalpha() for character in found)
    return found if letters > 0.6 * len(found) and len(plain_ngrams(found)) >= 15 else None


def make_items(held_out: list[dict], rows: list[dict], number: int, rng: random.Random) -> list[dict]:
    """Items that the corpus has nothing of."""
    passages = [text for text in (passage(row["text"], rng) for row in held_out) if text]
    owners: dict[tuple[str, ...], set[int]] = {}
    for index, text in enumerate(passages):
        for ngram in plain_ngrams(text):
            owners.setdefault(ngram, set()).add(index)
    shared = set()
    for row in rows:
        shared.update(*(owners[ngram] for ngram in owners.keys() & plain_ngrams(row["text"])))
    shared.update(*(indices for indices in owners.values() if len(indices) > 1))
    texts = [text for index, text in enumerate(passages) if index not in shared][:number]
    return [{"id": str(index), "text": text} for index, text in enumerate(texts)]


def plant(corpus: Path, folder: Path, number: int, rng: random.Random) -> tuple[int, int, dict[str, str]]:
    """Writes corpus.jsonl and items.jsonl; returns items, bytes of text and {id of a document with a leak: kind}."""
    rows = [json.loads(line) for path in sorted(corpus.glob("*.jsonl")) for line in path.open()]
    held_out, rows = rows[::10], [row for index, row in enumerate(rows) if index % 10]
    items = make_items(held_out, rows, number, rng)
    hosts = rng.sample(range(len(rows)), len(items) * len(KINDS))
    planted = {}
    for item in items:
        for kind, change in KINDS.items():
            row = rows[hosts.pop()]
            middle = row["text"].find("\n", len(row["text"]) // 2) + 1
            row["text"] = f"{row['text'][:middle]}\n{change(item['text'], rng)}\n{row['text'][middle:]}"
            planted[row["id"]] = kind
    for name, records in (("corpus", rows), ("items", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return len(items), sum(len(row["text"].encode()) for row in rows), planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items, size, planted = plant(arguments.corpus, folder, arguments.items, random.Random(arguments.seed))
        recipe = Path(__file__).parents[1] / "data_recipes" / "decontaminate.gin"
        command = [sys.executable, "-m", "pretrain", "curate", f"--gin_file={recipe}", f"--workers={arguments.workers}"]
        command += [f"--input={folder}/corpus.jsonl", f"--output={folder}/out"]
        command += [f"--gin.BENCHMARKS='{folder}/items.jsonl'"]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        tables = [pq.read_table(path) for path in (folder / "out" / "rejected").iterdir()]
        found = {row["id"]: row for table in tables for row in table.to_pylist()}
        documents = sum(pq.read_metadata(path).num_rows for path in (folder / "out" / "documents").iterdir())
        texts = {row["id"]: row["text"] for row in map(json.loads, (folder / "corpus.jsonl").open())}
        item_texts = {row["id"]: row["text"] for row in map(json.loads, (folder / "items.jsonl").open())}
    unplanted = [row for id_, row in found.items() if id_ not in planted]
    false = [row for row in unplanted if not holds(texts[row["id"]], item_texts[row["duplicate_of"].split("/")[1]])]
    for row in false:
        print("false hit:", row["id"], row["duplicate_of"], row["value"], file=sys.stderr)
    recall = {kind: [id_ in found for id_, planted_kind in planted.items() if planted_kind == kind] for kind in KINDS}
    result = {
        "items": items,
        "recall": {kind: sum(hits) / len(hits) for kind, hits in recall.items()},
        "clean documents": documents + len(found) - len(planted),
        "false hits": len(false),
        "hits not planted, confirmed letter by letter": len(unplanted) - len(false),
        "seconds": round(seconds, 2),
        "MB": round(size / 1e6, 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
