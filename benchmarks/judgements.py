"""How good the judgements of curation are: language, quality, perplexity, toxicity and personal data.

    python benchmarks/judgements.py FOLDER [--only language quality perplexity toxicity pii] [--seed=0]

Downloads labelled material into FOLDER once (benchmarks/judgement_material.py says what), judges what was held out by
source, and prints each metric beside that of a plain baseline and the floor that must be held. Ends with exit code 1 if
one is missed. Takes about five minutes on a 2-core VM.
"""

import argparse
import email.utils
import pathlib
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import judgement_material as material
import numpy as np
import pyarrow as pa
from judgement_material import Labelled
from planted_pii import plant

from pretrain.core.errors import exit_code
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.language import Language
from pretrain.curate.perplexity import CLEAN as CLEAN_TEXT
from pretrain.curate.perplexity import PerplexityFilter
from pretrain.curate.pii import Pii
from pretrain.curate.quality import GOOD, RANDOM, QualityClassifier
from pretrain.curate.stages import MapStage
from pretrain.curate.toxicity import CLEAN, TOXIC, ToxicityClassifier, ToxicWords

EXCERPT = 1_500  # characters of a document for quality and perplexity, so that length says nothing


class Result(NamedTuple):
    """One line of the table; `floor` and `baseline` may be missing."""

    judgement: str
    metric: str
    value: float
    baseline: float | None = None
    floor: float | None = None

    @property
    def is_met(self) -> bool:
        """At or above the floor and above the baseline."""
        return self.value >= (self.floor or 0) and (self.baseline is None or self.value > self.baseline)


def batch(texts: Sequence[str], language: str = "") -> pa.RecordBatch:
    """Texts as the documents of one record batch, tagged with a language."""
    number = len(texts)
    metadata = f'{{"language": "{language}"}}' if language else "{}"
    columns = [
        [str(i) for i in range(number)],
        ["x"] * number,
        ["train"] * number,
        texts,
        [""] * number,
        [metadata] * number,
        [None] * number,
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, DOCUMENTS, strict=True)], schema=DOCUMENTS
    )


def tag(stage: MapStage, texts: Sequence[str], name: str, language: str = "") -> list:
    """What the stage writes into the metadata of each text under a name."""
    decisions = stage.decide(batch(texts, language)).to_pylist()
    return [row["value"] if row["label"] is None else row["label"] for row in decisions if row["tag"] == name]


def auc(positive: Iterable[float], negative: Iterable[float]) -> float:
    """The chance that a positive scores above a negative; ties count half."""
    positive, negative = np.sort(list(positive)), np.sort(list(negative))
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def excerpts(documents: Iterable[Labelled], number: int, seed: int) -> list[Labelled]:
    """Up to `number` documents, of each a piece from anywhere of at most `EXCERPT` characters."""
    draw = random.Random(seed)
    documents = list(documents)
    draw.shuffle(documents)
    pieces = []
    for document in documents[:number]:
        start = draw.randint(0, max(0, len(document.text) - EXCERPT))
        pieces.append(document._replace(text=document.text[start : start + EXCERPT]))
    return pieces


def language(root: pathlib.Path, seed: int) -> list[Result]:
    """Accuracy on man pages, each language counting alike; baseline: a vote of each language's 50 commonest words."""
    documents = material.language_documents(root, 200)
    texts, labels = [d.text for d in documents], [d.label for d in documents]
    stage = Language(action="tag")
    started = time.process_time()
    found = ["nb" if code == "no" else code for code in tag(stage, texts, "language")]  # Norwegian, not Nynorsk
    seconds = time.process_time() - started
    scores = tag(stage, texts, "language_score")
    accuracy = by_label(labels, [a == b for a, b in zip(found, labels, strict=True)])
    wrong = Counter((a, b) for a, b in zip(labels, found, strict=True) if a != b)
    print(f"language: {len(texts)} documents of {len(accuracy)} languages; {_list(accuracy)}")
    print(f"  most confused (label, found): {wrong.most_common(5)}; {len(texts) / seconds:,.0f} documents/s")
    right = [score for score, a, b in zip(scores, found, labels, strict=True) if a == b]
    print(f"  right ones below the threshold of {stage.threshold}: {np.mean(np.array(right) < stage.threshold):.4f}")
    guessed = word_vote(documents)
    baseline = by_label([d.label for d, _ in guessed], [d.label == g for d, g in guessed])
    return [
        Result(
            "language",
            "macro accuracy",
            float(np.mean(list(accuracy.values()))),
            np.mean(list(baseline.values())),
            0.98,
        ),
        Result("language", "worst of 25 languages", min(accuracy.values()), min(baseline.values()), 0.93),
    ]


def word_vote(documents: list[Labelled]) -> list[tuple[Labelled, str]]:
    """The other half of the pages' languages, by which of their most common words (or signs) a text has the most."""
    is_training = [material.digest(d.source) % 2 == 0 for d in documents]
    counts: dict[str, Counter] = defaultdict(Counter)
    for document, training in zip(documents, is_training, strict=True):
        if training:
            counts[document.label].update(set(tokens(document.text)))
    common = {label: {word for word, _ in found.most_common(50)} for label, found in counts.items()}
    tested = [document for document, training in zip(documents, is_training, strict=True) if not training]
    votes = [{label: sum(t in words for t in tokens(d.text)) for label, words in common.items()} for d in tested]
    return [(document, max(vote, key=vote.get)) for document, vote in zip(tested, votes, strict=True)]


def tokens(text: str) -> list[str]:
    """Lower-case words; single signs of scripts without spaces."""
    return re.findall(r"[\u3040-\u9fff]|[^\W\d_]+", text.lower())


def by_label(labels: Sequence[str], is_right: Sequence[bool]) -> dict[str, float]:
    """Accuracy by label."""
    groups = defaultdict(list)
    for label, right in zip(labels, is_right, strict=True):
        groups[label].append(right)
    return {label: float(np.mean(right)) for label, right in sorted(groups.items())}


def prose_and_boilerplate(root: pathlib.Path, seed: int) -> dict[str, list[Labelled]]:
    """Corpora to train on, and held-out ones, each from sources of its own: books, dictionaries, packages, mail groups.

    Packages share the wording of a few licences: lines that were trained on are cut out of the held-out ones.
    """
    train, test = defaultdict(list), defaultdict(list)
    for kind in ("changelog", "copyright"):
        for document in material.package_files(kind):
            (train if material.digest(document.source.split("/")[1]) % 2 else test)[kind].append(document)
    known = {line.strip() for d in train["copyright"] for line in d.text.splitlines() if len(line.strip()) >= 40}
    licences = [
        d._replace(text="\n".join(line for line in d.text.splitlines() if line.strip() not in known))
        for d in test["copyright"]
    ]
    return {
        "train good": [*excerpts(material.articles(root, "gcide"), 2_000, seed), *material.book_pages(root)],
        "train bad": [
            *excerpts(material.mail_texts(root, "spam-1"), 1_000, seed),
            *excerpts(train["changelog"], 1_000, seed),
            *excerpts(train["copyright"], 1_000, seed),
        ],
        "dictionary of computing": excerpts(material.articles(root, "foldoc"), 1_000, seed),
        "jargon file": excerpts(material.articles(root, "jargon"), 1_000, seed),
        "spam": excerpts(material.mail_texts(root, "spam-2"), 1_000, seed),
        "changelogs": excerpts(test["changelog"], 500, seed),
        "licences": excerpts((d for d in licences if len(d.text) >= 400), 500, seed),
    }


HELD_OUT_GOOD = ("dictionary of computing", "jargon file")
HELD_OUT_BAD = ("spam", "changelogs", "licences")


def compare(
    title: str, corpora: dict, score: Callable[[list[str]], Sequence[float]], bad: Sequence[str] = HELD_OUT_BAD
) -> float:
    """The area under the curve of held-out prose against all held-out bad text; prints that of each kind."""
    scores = {name: score([d.text for d in corpora[name]]) for name in (*HELD_OUT_GOOD, *bad)}
    good = np.concatenate([scores[name] for name in HELD_OUT_GOOD])
    print(f"  {title}: {_list({name: auc(good, scores[name]) for name in bad})}")
    return auc(good, np.concatenate([scores[name] for name in bad]))


def stop_word_share(texts: list[str]) -> list[float]:
    """Baseline: the share of eight words that English prose is full of (Gopher's)."""
    stop = {"the", "be", "to", "of", "and", "that", "have", "with"}
    return [sum(w in stop for w in words) / max(1, len(words)) for words in (text.lower().split() for text in texts)]


def mean_word_length(texts: list[str]) -> list[float]:
    """Baseline: near 4.7 is good."""
    return [-abs(len("".join(text.split())) / max(1, len(text.split())) - 4.7) for text in texts]


def quality(root: pathlib.Path, seed: int) -> list[Result]:
    """Held-out encyclopedic prose against held-out boilerplate and spam."""
    corpora = prose_and_boilerplate(root, seed)
    print("quality:", {name: len(documents) for name, documents in corpora.items()})
    stage = QualityClassifier(good="-", random="-", action="tag")
    reference = {
        GOOD: [batch([d.text for d in corpora["train good"]])],
        RANDOM: [batch([d.text for d in corpora["train bad"]])],
    }
    started = time.process_time()
    fitted = stage.fit(reference)
    print(f"  trained in {time.process_time() - started:.1f} s, {len(fitted.model) / 1e6:.1f} MB")
    value = compare("fastText", corpora, lambda texts: tag(fitted, texts, "quality"))
    baselines = [compare(f.__name__, corpora, f) for f in (stop_word_share, mean_word_length)]
    return [Result("quality", "AUC", value, max(baselines), 0.95)]


def perplexity(root: pathlib.Path, seed: int) -> list[Result]:
    """Held-out prose against text that is no prose, by a model that has seen prose only.

    Licences are left out: they are prose. Damaged are the held-out articles themselves, as `damage` does it.
    """
    corpora = prose_and_boilerplate(root, seed)
    draw = random.Random(seed)
    corpora["damaged"] = [d._replace(text=damage(d.text, draw)) for d in corpora["dictionary of computing"]]
    clean = [d.text for d in [*material.articles(root, "gcide"), *material.book_pages(root)]]
    draw.shuffle(clean)
    started = time.process_time()
    fitted = PerplexityFilter(clean="-").fit({CLEAN_TEXT: [batch(clean)]})
    seconds = time.process_time() - started
    print(f"perplexity: trained on {sum(map(len, clean)) / 1e6:.1f} MB in {seconds:.1f} s")
    bad = ("spam", "changelogs", "damaged")
    value = compare("6-grams", corpora, lambda texts: [-v for v in tag(fitted, texts, "perplexity")], bad)
    baselines = [compare(f.__name__, corpora, f, bad) for f in (stop_word_share, mean_word_length)]
    for name in ("jargon file", *bad):
        print(f"  {name}: {Counter(tag(fitted, [d.text for d in corpora[name]], 'perplexity_bucket'))}")
    return [Result("perplexity", "AUC", value, max(baselines), 0.85)]


def damage(text: str, draw: random.Random) -> str:
    """Every eighth letter replaced, the words in another order, or the bytes read in another encoding."""
    kind = draw.randrange(3)
    if kind == 0:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz.,;0") if draw.random() < 0.125 else c for c in text)
    if kind == 1:
        return " ".join(draw.sample(text.split(), len(text.split())))
    return text.encode("utf-16-le").decode("cp437")


def toxicity(root: pathlib.Path, seed: int) -> list[Result]:
    """Sayings filed as offensive against others: by our lists in three languages, and by a classifier in English."""
    bsd = next(root.glob("pypi/*/data/share/games/fortune"))
    ours = root / "usr/share/games/fortunes"
    clean_en = [
        d for name in ("songs-poems", "wisdom", "literature", "science") for d in material.fortunes(ours / name, CLEAN)
    ]
    sets = {
        "en": (material.fortunes(bsd / "limerick", TOXIC), clean_en),
        "it": (
            [d for path in sorted((ours / "off/it").glob("*-o")) for d in material.fortunes(path, TOXIC)],
            [d for path in sorted((ours / "it").glob("*")) if not path.suffix for d in material.fortunes(path, CLEAN)],
        ),
        "es": (
            [d for path in sorted((ours / "off/es/off").glob("*.fortunes")) for d in material.fortunes(path, TOXIC)],
            [d for path in sorted((ours / "es").glob("*.fortunes")) for d in material.fortunes(path, CLEAN)],
        ),
    }
    results = []
    for code, (toxic, clean) in sets.items():
        rates = [
            np.mean(np.array(tag(ToxicWords(), [d.text for d in part], "toxic_words", code)) > 0.01)
            for part in (toxic, clean)
        ]
        print(f"toxicity, {code}: {len(toxic)} offensive, {len(clean)} others; {rates[0]:.4f}, {rates[1]:.4f} found")
        one_word = {"en": "shit", "it": "cazzo", "es": "puta"}[code]
        caught = np.mean([one_word in d.text.lower() for d in toxic])
        results.append(Result("toxicity", f"{code} list: offensive caught", float(rates[0]), float(caught)))
        results.append(Result("toxicity", f"{code} list: others kept", 1 - float(rates[1]), None, 0.98))
    toxic, clean = sets["en"]
    seen = {d.text for d in clean}
    examples = {
        TOXIC: material.fortunes(bsd / "fortunes-o", TOXIC),
        CLEAN: [d for d in material.fortunes(bsd / "fortunes", CLEAN) if d.text not in seen],
    }
    fitted = ToxicityClassifier(toxic="-", clean="-").fit(
        {k: [batch([d.text for d in v])] for k, v in examples.items()}
    )
    scores = [tag(fitted, [d.text for d in part], "toxicity") for part in (toxic, clean)]
    listed = [tag(ToxicWords(), [d.text for d in part], "toxic_words", "en") for part in (toxic, clean)]
    return [*results, Result("toxicity", "classifier AUC", auc(*scores), auc(*listed), 0.9)]


def pii(root: pathlib.Path, seed: int) -> list[Result]:
    """Planted in real text, by kind; and the addresses in the headers of real mails."""
    pages = [d.text for d in material.package_files("copyright")]
    passages = [text[:6_000] for text in pages if "@" not in text][:600]
    passages += [d.text for d in material.articles(root, "foldoc") if "@" not in d.text][:2_000]
    status = pathlib.Path("/var/lib/dpkg/status").read_text()
    emails = sorted(set(re.findall(r"<([^<>@\s]+@[^<>@\s]+)>", status)))
    planted = plant(passages, emails, seed)
    size = sum(len(p.text) for p in planted) / 1e6
    documents = batch([p.text for p in planted])
    started = time.process_time()
    decisions = Pii().decide(documents).to_pylist()
    speed = size / (time.process_time() - started)
    print(f"pii: {size:.1f} MB with {sum(len(p.spans) for p in planted):,} planted, {speed:.0f} MB/s")
    found: list[list] = [[] for _ in planted]
    for row in decisions:
        found[int(row["id"])].append((KINDS.get(row["rule"], row["rule"]), row["start"], row["end"]))
    results = []
    for kind in ("email", "ip", "phone", "card", "secret"):
        truth = [[span for span in p.spans if span[0] == kind] for p in planted]
        guess = [[span for span in spans if span[0] == kind] for spans in found]
        naive = [[(kind, *match.span()) for match in re.finditer(NAIVE[kind], p.text)] for p in planted]
        (recall, precision, f1), (_, _, baseline) = _score(truth, guess), _score(truth, naive)
        results += [Result("pii", f"{kind} recall", recall, None, 0.95)]
        results += [Result("pii", f"{kind} precision", precision, None, 0.9), Result("pii", f"{kind} F1", f1, baseline)]
    return [*results, *_mail_headers(root)]


KINDS = {"private_key": "secret"}
NAIVE = {  # what one would write down first
    "email": r"\S+@\S+",
    "ip": r"\d+\.\d+\.\d+\.\d+|[0-9a-fA-F:]*::[0-9a-fA-F:]*",
    "phone": r"\+?\d[\d ().-]{7,}\d",
    "card": r"\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}",
    "secret": r"(?i)(?:key|token|secret|password)\W{1,4}\S{16,}",
}


def _score(truth: list[list], found: list[list]) -> tuple[float, float, float]:
    """Recall (spans covered whole), precision (spans that touch a true one) and their harmonic mean."""
    pairs = list(zip(truth, found, strict=True))
    covered = [any(s <= t[1] and t[2] <= e for _, s, e in spans) for true, spans in pairs for t in true]
    right = [any(s < t[2] and t[1] < e for t in true) for true, spans in pairs for _, s, e in spans]
    recall, precision = np.mean(covered), np.mean(right) if right else 0.0
    return float(recall), float(precision), float(2 * recall * precision / max(recall + precision, 1e-9))


def _mail_headers(root: pathlib.Path) -> list[Result]:
    """Recall on what Python's mail parser finds in From, To and Received of mails that nobody wrote for a test."""
    wanted, masked = Counter(), Counter()
    stage = Pii()
    for mail in material.mails(root, "easy-ham-2"):
        lines = [f"{name}: {value}" for name, value in mail.items() if name in ("From", "To", "Cc", "Received")]
        text = "\n".join(lines).encode("utf-8", "replace").decode()
        fields = [value for name, value in mail.items() if name in ("From", "To", "Cc")]
        people = {address for _, address in email.utils.getaddresses(fields)}
        hosts = set(re.findall(r"\[(\d+\.\d+\.\d+\.\d+)\]", text))
        spans = stage.decide(batch([text])).to_pylist()
        for kind, values in (("email", people), ("ip", hosts)):
            taken = {text[span["start"] : span["end"]] for span in spans if span["rule"] == kind}
            expected = {value for value in values if value in text and _is_wanted(kind, value)}
            wanted[kind] += len(expected)
            masked[kind] += len(expected & taken)
    print(f"  mail headers: {dict(wanted)} addresses")
    return [Result("pii", f"{kind} recall, mail headers", masked[kind] / wanted[kind], None, 0.95) for kind in wanted]


def _is_wanted(kind: str, value: str) -> bool:
    if kind == "email":
        return bool(re.fullmatch(r"[^@\s]+@[\w-]+(\.[\w-]+)+", value)) and not re.search(
            r"example\.\w+$|localhost", value
        )
    return bool(re.fullmatch(r"(?!10\.|127\.|0\.|192\.168\.|169\.254\.|172\.(1[6-9]|2\d|3[01])\.|2[2-5]\d\.).*", value))


def _list(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


JUDGEMENTS = {f.__name__: f for f in (language, quality, perplexity, toxicity, pii)}


def main() -> int:
    """Runs what is asked for and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where downloaded material is kept")
    parser.add_argument("--only", nargs="+", choices=JUDGEMENTS, default=list(JUDGEMENTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = material.download(arguments.folder)
    results = [result for name in arguments.only for result in JUDGEMENTS[name](root, arguments.seed)]
    print("\n| judgement | metric | value | baseline | floor | |\n|---|---|---|---|---|---|")
    for r in results:
        numbers = ["" if number is None else f"{number:.4f}" for number in (r.value, r.baseline, r.floor)]
        print(f"| {r.judgement} | {r.metric} | {' | '.join(numbers)} | {'met' if r.is_met else 'MISSED'} |")
    return 0 if all(result.is_met for result in results) else 1


if __name__ == "__main__":
    sys.exit(exit_code(main, "judgements"))
