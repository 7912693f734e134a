"""Parts of the report about the data: what went in, what was dropped and why, and how many tokens that made."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pretrain.report.markup import Markup, element, fold, missing, table
from pretrain.report.quantities import NOTHING, count, percent, significant, size
from pretrain.report.results import Results

SOURCES = 40  # rows of a table; the smaller sources share the last one
EXAMPLES = 3  # dropped documents shown for each reason


def sources(results: Results) -> Iterator[Markup]:
    """Documents and bytes of each source: read, kept, rejected."""
    sheet = results.datasheet
    if sheet is None:
        yield missing("Not curated yet", "pretrain curate")
        return
    total = sheet["total"]
    yield element(
        "p",
        f"{count(sheet['input']['files'])} files of {size(sheet['input']['bytes'])} held "
        f"{count(total['read']['documents'])} documents; {count(total['kept']['documents'])} were kept, of which "
        f"{count(total['validation']['documents'])} ({size(total['validation']['bytes'])}) are held out to validate.",
    )
    ignored = sheet["input"].get("ignored_files") or {}
    if ignored:
        listed = ", ".join(f"{count(number)} {extension}" for extension, number in sorted(ignored.items()))
        yield element("p", f"Files that no reader knows were left out: {listed}.")
    header = [
        "source",
        "documents read",
        "documents kept",
        "text read",
        "text kept",
        "rejected",
        "edited out",
        "share kept",
    ]
    yield table(header, [_source_row(name, sums) for name, sums in _largest(sheet["sources"])], total=True)


def _source_row(name: str, numbers: dict[str, Any]) -> list[str]:
    read, kept = numbers["read"], numbers["kept"]
    rejected, edited = _lost(numbers)
    return [
        name,
        count(read["documents"]),
        count(kept["documents"]),
        size(read["bytes"]),
        size(kept["bytes"]),
        size(rejected),
        size(edited),
        percent(kept["bytes"], read["bytes"]),
    ]


def _lost(numbers: dict[str, Any]) -> tuple[int, int]:
    """Bytes rejected and bytes edited out."""
    lost = [
        sum(part["bytes"] for stage in numbers["stages"] for part in stage[kind].values())
        for kind in ("rejected", "edited")
    ]
    return lost[0], lost[1]


def _largest(by_source: dict[str, Any]) -> list[tuple[str, dict]]:
    """Sources by size, the smallest together, then the sum of all."""
    ordered = sorted(by_source.items(), key=lambda item: (-item[1]["read"]["bytes"], item[0]))
    rest = ordered[SOURCES:]
    rows = ordered[:SOURCES] + ([(f"{len(rest)} more", _sum([numbers for _, numbers in rest]))] if rest else [])
    return [*rows, ("all", _sum(list(by_source.values())))]


def _sum(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{
            key: {unit: sum(part[key][unit] for part in parts) for unit in ("documents", "bytes")}
            for key in ("read", "kept")
        },
        "stages": [stage for part in parts for stage in part["stages"]],
    }


def dropped(results: Results) -> Iterator[Markup]:
    """Rules with what they cost, and examples of what they dropped."""
    sheet = results.datasheet
    if sheet is None:
        yield missing("Not curated yet", "pretrain curate")
        return
    total = sheet["total"]["read"]
    rejected, edited = _by_rule(sheet, "rejected"), _by_rule(sheet, "edited")
    if not rejected and not edited:
        yield element("p", "Nothing was dropped.")
    if rejected:
        yield table(
            ["stage", "rule", "documents", "text", "share of text"],
            [
                [stage, rule, count(sums["documents"]), size(sums["bytes"]), percent(sums["bytes"], total["bytes"])]
                for (stage, rule), sums in rejected.items()
            ],
            labels=2,
        )
    if edited:
        yield element("h3", "Cut out of documents that stay")
        yield table(
            ["stage", "rule", "edits", "text", "share of text"],
            [
                [stage, rule, count(sums["edits"]), size(sums["bytes"]), percent(sums["bytes"], total["bytes"])]
                for (stage, rule), sums in edited.items()
            ],
            labels=2,
        )
    examples = _examples(sheet)
    if examples:
        yield element("h3", "Examples of what was dropped")
    for stage, rule in rejected:
        parts = [part for example in examples.get((stage, rule), []) for part in _example(example)]
        if parts:
            yield fold(f"{stage}: {rule}", *parts)


def _by_rule(sheet: dict[str, Any], kind: str) -> dict[tuple[str, str], dict[str, int]]:
    """(stage, rule) -> sums over all sources, in the order of stages, the costliest rule first."""
    sums: dict[tuple[str, str], dict[str, int]] = {}
    order: dict[str, int] = {}
    for numbers in sheet["sources"].values():
        for position, stage in enumerate(numbers["stages"]):
            order.setdefault(stage["stage"], position)
            for rule, part in stage[kind].items():
                entry = sums.setdefault((stage["stage"], rule), defaultdict(int))
                for unit, number in part.items():
                    entry[unit] += number
    return dict(sorted(sums.items(), key=lambda item: (order[item[0][0]], -item[1]["bytes"], item[0])))


def _examples(sheet: dict[str, Any]) -> dict[tuple[str, str], list[dict]]:
    chosen: dict[tuple[str, str], list[dict]] = {}
    for numbers in sheet["sources"].values():
        for example in numbers["examples"]["dropped"]:
            listed = chosen.setdefault((example["stage"], example["rule"]), [])
            if len(listed) < EXAMPLES:
                listed.append(example)
    return chosen


def _example(example: dict[str, Any]) -> tuple[Markup, Markup]:
    reasons = [example["origin"]]
    if example.get("value") is not None:
        reasons.append(f"value {significant(example['value'])}, threshold {significant(example['threshold'])}")
    if example.get("duplicate_of"):
        reasons.append(f"same as {example['duplicate_of']}")
    return element("p", " · ".join(reasons), class_="reason"), element("pre", example.get("excerpt") or "(empty)")


def tokens(results: Results) -> Iterator[Markup]:
    """The tokenizer, and tokens and bytes of each source and split."""
    cache = results.cache
    if cache is None:
        yield missing("Not tokenized yet", "pretrain cache")
        return
    tokenizer = cache["tokenizer"]
    entries = f"{tokenizer['kind']} with {count(tokenizer['vocab_size'])} entries"
    yield element("p", f"Tokenizer: {entries}, fingerprint {tokenizer['fingerprint']}.")
    for split in sorted({split for splits in cache["sources"].values() for split in splits}):
        chosen = [(source, splits[split]) for source, splits in cache["sources"].items() if split in splits]
        chosen.sort(key=lambda item: (-item[1]["tokens"], item[0]))
        rest, everything = _sizes(chosen[SOURCES:]), _sizes(chosen)
        rows = [*chosen[:SOURCES], *([(f"{len(chosen) - SOURCES} more", rest)] if rest["documents"] else [])]
        yield element("h3", split.capitalize())
        yield table(
            ["source", "documents", "tokens", "share", "text", "bytes a token"],
            [_token_row(name, sizes, everything["tokens"]) for name, sizes in [*rows, ("all", everything)]],
            total=True,
        )


def _sizes(entries: list[tuple[str, dict]]) -> dict[str, int]:
    return {unit: sum(entry[unit] for _, entry in entries) for unit in ("documents", "tokens", "bytes")}


def _token_row(name: str, sizes: dict[str, int], all_tokens: int) -> list[str]:
    return [
        name,
        count(sizes["documents"]),
        count(sizes["tokens"]),
        percent(sizes["tokens"], all_tokens),
        size(sizes["bytes"]),
        significant(sizes["bytes"] / sizes["tokens"]) if sizes["tokens"] else NOTHING,
    ]
