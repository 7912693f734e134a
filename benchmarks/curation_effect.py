"""What curation does to a model: the quickstart model trained on raw and on curated text of the same number of bytes.

    python benchmarks/curation_effect.py MATERIAL OUTPUT [--megabytes=1.4] [--pool_megabytes=50] [--seeds 0 1 2]

**Raw** text is a pool in the proportions of a crawl. RefinedWeb (Penedo et al. 2023) kept 11.67 % of Common Crawl's
documents: about half of it is in other languages, half of the rest is no good text, half of what then is left are
copies. So `SHARES` gives 12 % of the bytes to English running text, 12 % to copies of it with a few words changed or
other line breaks, 50 % to other languages, and the rest to mails of spammers, licences, change logs, markup, scripts,
tables, lists and logs. All but the copies is found text, labelled by where it stands: Debian packages and a corpus of
mails in MATERIAL (downloaded once, see judgement_material.py), and what is installed on this machine.

**Raw English** is the same pool without other languages: what is left to win for one who has identified them.

**Curated** is what data_recipes/web_text.gin, as it is shipped, leaves of the whole pool.

Each model has its arm's own tokenizer and reads its arm's bytes once, in as many steps as that takes: text that its
tokenizer cuts smaller gets more steps. All are asked for bits per byte of the same **held-out** text, from three
sources that the pool has nothing of: the Jargon File, the Debian Reference and the Devil's Dictionary. They are chosen
by name, and not curated: the recipe would drop half of them. Prints a line a run; some 6 minutes each on 2 cores.
"""

import argparse
import dataclasses
import gzip
import json
import random
import shutil
import sys
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import judgement_material as material
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core import config as gin_config
from pretrain.core import storage
from pretrain.core.errors import exit_code
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.recipe import Recipe, curate
from pretrain.experiment import Experiment

SITE, SYSTEM = Path(sysconfig.get_paths()["purelib"]), Path("/usr/share")
HANDBOOK = "usr/share/doc/debian-handbook/html"
PROSE, COPIES, LANGUAGES = "prose", "copies", "languages"
TRANSLATED = ("ca-ES", "de-DE", "es-ES", "fr-FR", "id-ID", "it-IT", "nb-NO", "pt-BR")  # others are half in English
SHARES = {  # of the pool's bytes
    PROSE: 0.12,
    COPIES: 0.12,
    LANGUAGES: 0.50,
    "spam": 0.05,
    "notices": 0.06,
    "markup": 0.05,
    "scripts": 0.03,
    "tables": 0.04,
    "logs": 0.03,
}
INSTALLED = {  # kind: folders, file names
    "markup": ((SYSTEM, SITE), ("*.html", "*.svg", "*.xml", "*.[1-8].gz")),
    "scripts": ((SITE, SYSTEM), ("*.js", "*.css", "*.map")),
    "tables": ((SITE, SYSTEM), ("*.csv", "*.json", "*.dat")),
    "logs": ((Path("/var/log"), Path("/var/lib/dpkg")), ("*.log", "*.list", "*.md5sums", "status")),
}
CHANGED_WORDS = 0.01  # of a near copy
MIN_CHARACTERS, MAX_CHARACTERS = 300, 10_000
ARMS = ("raw", "raw English", "curated")

Texts = Iterable[str]
Pool = list[tuple[str, str]]  # (kind, text)


def texts_of(kind: str, root: Path) -> Iterator[str]:
    """All texts of a kind, as a crawl would show them."""
    if kind == PROSE:
        yield from pages(sorted((root / HANDBOOK / "en-US").glob("*.html")))
        yield from manuals(root, "man*")
        for group in ("easy-ham-1", "easy-ham-2"):
            yield from (mail.text for mail in material.mail_texts(root, group))
    elif kind == LANGUAGES:
        for code in TRANSLATED:
            yield from pages(sorted((root / HANDBOOK / code).glob("*.html")))
        for code in material.TRANSLATIONS:
            yield from manuals(root, code)
    elif kind == "spam":
        for group in ("spam-1", "spam-2"):
            yield from (mail.text for mail in material.mail_texts(root, group))
    elif kind == "notices":
        for name in ("copyright", "changelog"):
            yield from (document.text for document in material.package_files(name))
    else:
        folders, names = INSTALLED[kind]
        yield from files({path for folder in folders for name in names for path in folder.rglob(name)})


def pages(paths: list[Path]) -> Iterator[str]:
    """HTML without tags, menus and all."""
    return (material.strip_tags(path.read_text("utf-8", "replace")) for path in paths)


def manuals(root: Path, folder: str) -> Iterator[str]:
    """The running text of man pages."""
    found = [path for part in sorted((root / "usr/share/man").glob(folder)) for path in sorted(part.rglob("*.gz"))]
    return ("\n\n".join(material.paragraphs(path)) for path in found if path.is_file() and not path.is_symlink())


def files(paths: set[Path]) -> Iterator[str]:
    """Files that are UTF-8 text, in an order that mixes them, as they are."""
    for path in sorted(paths, key=order):
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = content.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue  # no text, no part of this
        if "\0" not in text:
            yield text


def order(key: object) -> int:
    """A fixed number for anything, to choose and shuffle by."""
    return material.digest(str(key))


def limited(texts: Texts, size: float) -> list[str]:
    """Texts of a fitting length, long ones cut, until there are `size` bytes."""
    taken = []
    for text in texts:
        if size <= 0:
            break
        if len(text) >= MIN_CHARACTERS:
            taken.append(text[:MAX_CHARACTERS])
            size -= len(taken[-1].encode())
    return taken


def copy_of(text: str) -> str:
    """The text with some of its words put elsewhere, or with other line breaks."""
    draw = random.Random(order(text))
    if draw.random() < 0.5:
        return "\n\n".join(textwrap.fill(part, draw.randint(60, 100)) for part in text.split("\n\n"))
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, int(len(words) * CHANGED_WORDS))):
        words[place] = draw.choice(words)
    return " ".join(words)


def make_pool(root: Path, size: float) -> Pool:
    """The pool in mixed order."""
    taken: dict[str, list[str]] = {}
    for kind, share in SHARES.items():
        if kind == COPIES:
            found: Texts = map(copy_of, taken[PROSE])
        else:
            found = texts_of(kind, root) if kind in INSTALLED else sorted(set(texts_of(kind, root)), key=order)
        taken[kind] = limited(found, size * share)
    return sorted(((kind, text) for kind, texts in taken.items() for text in texts), key=lambda pair: order(pair[1]))


def held_out_texts(root: Path, size: float) -> list[str]:
    """About `size` bytes of the three sources, a third of them each, or all there is."""
    reference = [page.text for page in material.book_pages(root) if ".en.html" in page.source]
    sources = [reference, *([a.text for a in material.articles(root, name)] for name in ("jargon", "devil"))]
    return [text for texts in sources for text in limited(sorted(texts, key=order), size / len(sources))]


def curated(pool: Pool, folder: Path) -> Pool:
    """What the recipe leaves of the pool, in mixed order; prints what became of each kind."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pool").mkdir(parents=True)
    for kind in SHARES:
        rows = [{"id": f"{kind}-{number}", "text": text} for number, (own, text) in enumerate(pool) if own == kind]
        (folder / "pool" / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Path(__file__).parents[1] / "data_recipes" / "web_text.gin"
    inputs = {kind: str(folder / "pool" / f"{kind}.jsonl") for kind in SHARES}
    gin_config.load([str(recipe)], [f"INPUT = {inputs!r}", "VALIDATION_FRACTION = 0.0"])
    sheet = curate(Recipe(), folder / "curated")
    for kind, counts in sheet["sources"].items():
        read, kept = counts["read"]["bytes"] / 1e6, counts["kept"]["bytes"] / 1e6
        print(f"{kind:10} {read:6.2f} MB read, {kept:6.2f} MB kept", flush=True)
    kept = pa.concat_tables(pq.read_table(file) for file in (folder / "curated" / "documents").iterdir())
    pairs = zip(kept["source"].to_pylist(), kept["text"].to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: order(pair[1]))


def first_bytes(pool: Pool, size: float) -> Pool:
    """Texts from the start until there are `size` bytes; the last is cut."""
    taken, left = [], int(size)
    for kind, text in pool:
        if left <= 0:
            break
        taken.append((kind, text.encode()[:left].decode("utf-8", "ignore")))
        left -= len(text.encode())
    return taken


def shares(arm: Pool) -> str:
    """What an arm's bytes are, by kind."""
    sizes = Counter()
    for kind, text in arm:
        sizes[kind] += len(text.encode())
    return ", ".join(f"{kind} {size / sizes.total():.1%}" for kind, size in sizes.most_common())


def write_corpus(folder: Path, train: Texts, validation: Texts) -> None:
    """Texts as a curated corpus with the split as given."""
    splits = (("train", train), ("validation", validation))
    rows = [
        (f"{split}-{number}", "corpus", split, text, "", "{}", None)
        for split, texts in splits
        for number, text in enumerate(texts)
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), DOCUMENTS, strict=True)]
    (folder / "documents").mkdir(parents=True)
    pq.write_table(pa.table(arrays, schema=DOCUMENTS), folder / "documents" / "00000-of-00001.parquet")
    fingerprint = storage.fingerprint([row[3] for row in rows])
    (folder / "complete.json").write_text(json.dumps({"fingerprint": fingerprint}))


def train_and_score(workdir: Path, train: Texts, held_out: Texts, seed: int, max_steps: int) -> dict[str, float]:
    """Trains the quickstart model on one epoch; returns "bits_per_byte" of the held-out texts, "step" and "tokens"."""
    run = Path(__file__).parents[1] / "gin_configs" / "runs" / "quickstart.gin"
    shutil.rmtree(workdir, ignore_errors=True)
    write_corpus(workdir / "corpus", train, held_out)
    bindings = [f"SEED = {seed}", "EVAL_EVERY = 0", "CHECKPOINT_EVERY = 1000000"]
    experiment = Experiment.from_gin([str(run)], bindings, workdir=str(workdir))
    tokens = experiment.cache()["sources"]["corpus"]["train"]["tokens"]
    training = experiment.training
    steps = tokens // (training.batch_size * training.sequence_length)
    experiment.training = dataclasses.replace(training, steps=min(steps, max_steps or steps))
    experiment.train()
    return {"tokens": tokens} | experiment.evaluate()


def main() -> None:
    """Makes the arms, trains on each with every seed and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, help="where downloaded packages are kept")
    parser.add_argument("output", type=Path)
    parser.add_argument("--megabytes", type=float, default=1.4, help="of text that each model is given")
    parser.add_argument("--pool_megabytes", type=float, default=50.0)
    parser.add_argument("--held_out_megabytes", type=float, default=0.21)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--max_steps", type=int, default=0, help="0: one epoch")
    flags = parser.parse_args()
    root = material.download(flags.material)
    pool, held_out = make_pool(root, flags.pool_megabytes * 1e6), held_out_texts(root, flags.held_out_megabytes * 1e6)
    clean = curated(pool, flags.output)
    pools = dict(zip(ARMS, (pool, [pair for pair in pool if pair[0] != LANGUAGES], clean), strict=True))
    size = min(flags.megabytes * 1e6, sum(len(text.encode()) for _, text in clean))
    arms = {arm: first_bytes(pools[arm], size) for arm in flags.arms}
    for arm, pairs in arms.items():
        print(f"{arm}: {sum(len(text.encode()) for _, text in pairs) / 1e6:.2f} MB: {shares(pairs)}", flush=True)
    results: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in flags.seeds:
        for arm, pairs in arms.items():
            workdir = flags.output / f"{arm.replace(' ', '_')}-{seed}"
            found = train_and_score(workdir, [text for _, text in pairs], held_out, seed, flags.max_steps)
            results[arm].append(found["bits_per_byte"])
            numbers = f"{found['step']} steps, {found['tokens']:,} tokens, {found['bits_per_byte']:.4f} bits per byte"
            print(f"seed {seed}, {arm}: {numbers}", flush=True)
    for arm, values in results.items():
        less = [round(ours - theirs, 4) for ours, theirs in zip(results.get("curated", values), values, strict=True)]
        print(f"{arm}: {np.mean(values):.4f} (from {min(values):.4f} to {max(values):.4f}); curated less it: {less}")


if __name__ == "__main__":
    sys.exit(exit_code(main, "curation_effect"))
