"""What curation does to a model: the quickstart model trained on raw and on curated text of the same size.

    python benchmarks/curation_effect.py OUTPUT [--megabytes=2] [--pool_megabytes=24] [--seeds=3] [--steps=120]

Raw text is what lies on this machine, as a crawl would find it: documentation (docstrings, manuals, READMEs) of which
each has its near copies, and around it markup, tables, logs, minified scripts, licences and change logs, by fixed
shares. Curated text is what data_recipes/web_text.gin leaves of the same pool, with limits for technical prose (below).
Both models read the same number of bytes, with tokenizers of their own, and both are asked for bits per byte of the
same held-out documentation, from packages that the pool has nothing of. What is held out is chosen by where it comes
from, not by any rule of the recipe. Prints a line a run; about 3 minutes each on 2 cores.
"""

import argparse
import ast
import gzip
import hashlib
import json
import random
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core import config as gin_config
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.recipe import Recipe, curate
from pretrain.experiment import Experiment

SITE = Path(sysconfig.get_paths()["purelib"])
# (kind, share of the pool's bytes, folders, file names); documentation first.
DOCSTRINGS = "docstrings"
KINDS = (
    (DOCSTRINGS, 0.25, (SITE, Path(sysconfig.get_paths()["stdlib"])), ("*.py",)),
    ("manuals", 0.15, (Path("/usr/share"), SITE), ("*.pod", "*.rst", "*.md", "*.rst.txt", "*.md.txt", "METADATA")),
    ("markup", 0.20, (Path("/usr/share"), SITE), ("*.html", "*.svg", "*.xml", "*.[1-8].gz")),
    ("tables", 0.10, (SITE, Path("/usr/share")), ("*.csv", "*.json", "*.dat")),
    ("scripts", 0.10, (SITE, Path("/usr/share")), ("*.js", "*.css", "*.map")),
    ("notices", 0.10, (Path("/usr/share/doc"),), ("copyright", "changelog*.gz")),
    ("logs", 0.05, (Path("/var/log"), Path("/var/lib/dpkg")), ("*.log", "*.list", "*.md5sums", "status")),
)
DOCUMENTATION = {DOCSTRINGS, "manuals"}
NEAR_COPIES = 0.05  # the rest of the pool: documentation again, with some of its words changed
CHANGED_WORDS = 0.03
SHARED = ("doc", "perl", "perl5")  # folders with one folder a package
MIN_BYTES, MAX_BYTES = 300, 60_000
HELD_OUT = 12  # one package in so many
# Technical prose has more signs, shorter lines and more repetition than the web pages whose limits are the defaults.
BINDINGS = (
    "GopherQuality.min_alphabetic_words = 0.65",
    "FineWebQuality.max_repeated_line_characters = 0.1",
    "FineWebQuality.max_short_lines = 0.8",
    "FineWebQuality.max_line_feeds_per_word = 0.5",
    "C4.curly_brackets = False",
    "C4.min_sentences = 3",
    "Language.threshold = 0.5",
)


def order(key: object) -> int:
    """A fixed number for anything, to choose and shuffle by."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "little")


def texts_of(kind: str, path: Path) -> list[str]:
    """The texts of a file: a module's docstrings as one, anything else as it is."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = content.decode("utf-8")
    if kind == DOCSTRINGS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = ast.walk(ast.parse(text))
        holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        text = "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, holders))))
    return [text[:MAX_BYTES]] if len(text) >= MIN_BYTES and "\0" not in text else []


def collect(kind: str, folders: tuple[Path, ...], names: tuple[str, ...], size: float) -> Iterator[tuple[str, str]]:
    """(package, text) of files of a kind in the order of a hash of their paths, about `size` bytes of them."""
    found = {path: folder for folder in folders for name in names for path in folder.rglob(name)}
    for path in sorted(found, key=order):
        if size <= 0:
            return
        parts = path.relative_to(found[path]).parts
        package = parts[parts[0] in SHARED].split("-")[0].removesuffix(".py").lower()
        try:
            texts = texts_of(kind, path) if path.is_file() else []
        except (OSError, EOFError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
            continue
        for text in texts:
            size -= len(text.encode())
            yield package, text


def near_copy(text: str, seed: int) -> str:
    """The text with some of its words put elsewhere."""
    words, draw = text.split(" "), random.Random(seed)
    for place in draw.sample(range(len(words)), max(1, int(len(words) * CHANGED_WORDS))):
        words[place] = draw.choice(words)
    return " ".join(words)


def write_pool(folder: Path, size: float) -> tuple[list[str], list[str]]:
    """Writes the pool as one JSONL file a kind; returns its texts in mixed order, and the held-out ones."""
    folder.mkdir(parents=True, exist_ok=True)
    pool, held_out = [], []
    for kind, share, folders, names in KINDS:
        kept = []
        for package, text in collect(kind, folders, names, size * share):
            is_held_out = kind in DOCUMENTATION and order(package) % HELD_OUT == 0
            (held_out if is_held_out else kept).append(text)
        if kind in DOCUMENTATION:
            room = size * NEAR_COPIES / len(DOCUMENTATION)
            for text in sorted(kept, key=lambda text: order(text[::-1])):
                room -= len(text.encode())
                if room > 0:
                    kept.append(near_copy(text, order(text)))
        lines = [json.dumps({"id": f"{kind}-{number}", "text": text}) + "\n" for number, text in enumerate(kept)]
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
        pool += kept
    return sorted(pool, key=order), sorted(held_out, key=order)


def curated(folder: Path, output: Path) -> list[str]:
    """What the recipe leaves of the pool, in mixed order; prints what became of each kind."""
    recipe = Path(__file__).parents[1] / "data_recipes" / "web_text.gin"
    inputs = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    gin_config.load([str(recipe)], [f"INPUT = {inputs!r}", "VALIDATION_FRACTION = 0.0", *BINDINGS])
    for source, counts in curate(Recipe(), output)["sources"].items():
        read, kept = counts["read"]["bytes"] / 1e6, counts["kept"]["bytes"] / 1e6
        print(f"{source:12} {read:6.2f} MB read, {kept:6.2f} MB kept", flush=True)
    texts = [text for file in (output / "documents").iterdir() for text in pq.read_table(file)["text"].to_pylist()]
    return sorted(texts, key=order)


def first_bytes(texts: list[str], size: float) -> list[str]:
    """Texts from the start, whole, until there are `size` bytes."""
    ends = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(ends, size)) + 1]


def write_corpus(folder: Path, train: list[str], validation: list[str]) -> None:
    """Texts as a curated corpus with the split as given."""
    rows = [(f"{split}-{number}", split, text) for split, texts in (("train", train), ("validation", validation))
            for number, text in enumerate(texts)]  # fmt: skip
    columns = [[row[0] for row in rows], ["corpus"] * len(rows), [row[1] for row in rows], [row[2] for row in rows],
               [""] * len(rows), ["{}"] * len(rows)]  # fmt: skip
    (folder / "documents").mkdir(parents=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS, strict=True)]
    pq.write_table(pa.table(arrays, schema=DOCUMENTS), folder / "documents" / "00000-of-00001.parquet")
    fingerprint = hashlib.blake2b("".join(row[2] for row in rows).encode(), digest_size=16).hexdigest()
    (folder / "complete.json").write_text(json.dumps({"fingerprint": fingerprint}))


def bits_per_byte(workdir: Path, train: list[str], held_out: list[str], seed: int, steps: int) -> float:
    """Trains the quickstart model and scores the held-out texts."""
    run = Path(__file__).parents[1] / "gin_configs" / "runs" / "quickstart.gin"
    bindings = [f"SEED = {seed}", f"TRAIN_STEPS = {steps}", f"EVAL_EVERY = {steps}", f"CHECKPOINT_EVERY = {steps}"]
    shutil.rmtree(workdir, ignore_errors=True)
    write_corpus(workdir / "corpus", train, held_out)
    experiment = Experiment.from_gin([str(run)], bindings, workdir=str(workdir))
    experiment.cache()
    experiment.train()
    return experiment.evaluate()["bits_per_byte"]


def main() -> None:
    """Makes both texts, trains on each with every seed and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--megabytes", type=float, default=2.0, help="of text that each model is given")
    parser.add_argument("--pool_megabytes", type=float, default=24.0)
    parser.add_argument("--held_out_megabytes", type=float, default=0.15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    flags = parser.parse_args()
    shutil.rmtree(flags.output / "curated", ignore_errors=True)
    pool, held_out = write_pool(flags.output / "pool", flags.pool_megabytes * 1e6)
    clean = curated(flags.output / "pool", flags.output / "curated")
    size = min(flags.megabytes * 1e6, sum(len(text.encode()) for text in clean))
    held_out = first_bytes(held_out, flags.held_out_megabytes * 1e6)
    arms = {"raw": first_bytes(pool, size), "curated": first_bytes(clean, size)}
    results: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in range(flags.seeds):
        for arm, texts in arms.items():
            results[arm].append(bits_per_byte(flags.output / f"{arm}-{seed}", texts, held_out, seed, flags.steps))
            print(f"seed {seed}, {arm:7}: {results[arm][-1]:.4f} bits per byte", flush=True)
    for arm, values in results.items():
        size = sum(len(text.encode()) for text in arms[arm])
        print(f"{arm:7} {size / 1e6:.2f} MB: {np.mean(values):.4f} (from {min(values):.4f} to {max(values):.4f})")
    print(f"curated less raw, by seed: {[round(c - r, 4) for c, r in zip(*reversed(results.values()), strict=True)]}")


if __name__ == "__main__":
    main()
