"""The datasheet: what went in, what was dropped and why, what came out; as JSON, Markdown and one HTML page.

After Gebru et al., "Datasheets for Datasets" (2018), and the tables that The Pile (Gao et al., 2020) published by
hand. It holds no times and no machine names, so the same recipe on the same input writes the same bytes.
"""

import dataclasses
import importlib.metadata
import platform
from collections import Counter
from typing import Any

from pretrain.core import storage
from pretrain.curate import mixture
from pretrain.curate.datasheet_page import json_lines, page, reason, summary, versions
from pretrain.curate.inputs import InputFile

EXAMPLES = 3
TOP = 20  # domains, languages and licences shown
PACKAGES = ("pretrain", "pyarrow", "numpy", "xxhash")
UNITS = ("documents", "bytes", "tokens")


def make(
    totals: dict,
    recipe: dict,
    files: list[InputFile],
    ignored: Counter,
    config_text: str,
    fingerprint: str,
    plan: mixture.MixturePlan,
) -> dict[str, Any]:
    """The datasheet as plain JSON values.

    Args:
        totals: what the engine counted.
        recipe: the recipe's resolved settings.
        files: what was read.
        ignored: files of input folders that no reader knows, by extension.
        config_text: the configuration as the user gave it.
        fingerprint: of recipe and input.
        plan: how sources are to be mixed.
    """
    sources = {source: _source(source, totals) for source in sorted(totals["read"])}
    sheet = {
        "sources": sources,
        "input": {"files": len(files), "bytes": sum(file.size for file in files), "ignored_files": dict(ignored)},
        "recipe": recipe,
        "config": config_text,
        "fingerprint": fingerprint,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    return with_mixture(sheet, plan)


def with_mixture(sheet: dict[str, Any], plan: mixture.MixturePlan) -> dict[str, Any]:
    """The datasheet with another mixture plan, and with tokens as it estimates them."""
    ratio = plan.bytes_per_token
    sources = {name: _with_tokens(source, ratio) for name, source in sheet["sources"].items()}
    total = {
        key: {unit: sum(source[key][unit] for source in sources.values()) for unit in UNITS}
        for key in ("read", "kept", "train", "validation")
    }
    shares = mixture.mixture_plan({name: source["train"]["tokens"] for name, source in sources.items()}, plan)
    return sheet | {
        "sources": sources,
        "total": total,
        "tokens": f"estimated from bytes, {ratio:g} of them a token",
        "mixture": {
            "plan": dataclasses.asdict(plan),
            "shares": [share._asdict() for share in shares],
            "warnings": mixture.warnings(shares),
        },
    }


def _with_tokens(value: Any, bytes_per_token: float) -> Any:
    """Puts "tokens" beside "documents" and "bytes", at every depth."""
    if isinstance(value, list):
        return [_with_tokens(inner, bytes_per_token) for inner in value]
    if not isinstance(value, dict):
        return value
    if "documents" in value and "bytes" in value:
        return value | {"tokens": round(value["bytes"] / bytes_per_token)}
    return {key: _with_tokens(inner, bytes_per_token) for key, inner in value.items()}


def _source(source: str, totals: dict) -> dict[str, Any]:
    nothing = {"documents": 0, "bytes": 0}
    stages = [
        {
            "stage": name,
            "in": stage["in"].get(source, nothing),
            "rejected": stage["rejected"].get(source, {}),
            "edited": stage["edited"].get(source, {}),
            "tagged": stage.get("tagged", {}).get(source, {}),
            "out": stage["out"].get(source, nothing),
        }
        for name, stage in totals["stages"].items()
    ]
    read = totals["read"][source]
    duplicates = totals["duplicates"].get(source, 0)
    return {
        "read": read,
        "stages": stages,
        "kept": totals["kept"].get(source, nothing),
        **{split: totals["splits"][split].get(source, nothing) for split in ("train", "validation")},
        "duplicates": {"number": duplicates, "rate": duplicates / max(1, read["documents"])},
        "lengths": {
            "read": totals["lengths"].get(source, {}),
            "kept": totals["kept_lengths"].get(source, {}),
        },
        **{name: _top(totals[name].get(source, {})) for name in ("languages", "licences", "domains")},
        "examples": {
            "kept": _examples(totals["examples_kept"], source, ()),
            "dropped": _examples(totals["examples_dropped"], source, ("stage", "rule")),
        },
    }


def _top(counted: dict[str, int]) -> dict[str, int]:
    """The commonest values, then "others"."""
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[TOP:])
    return dict(ordered[:TOP]) | ({"others": rest} if rest else {})


def _examples(rows: list[dict], source: str, keys: tuple[str, ...]) -> list[dict]:
    """The first few by id of each kind; ids are hashes, so they are as good as drawn by lot."""
    seen: Counter = Counter()
    chosen = []
    for row in sorted((row for row in rows if row["source"] == source), key=lambda row: row["id"]):
        kind = tuple(row[key] for key in keys)
        seen[kind] += 1
        if seen[kind] <= EXAMPLES:
            chosen.append({key: value for key, value in row.items() if key != "source" and value is not None})
    return sorted(chosen, key=lambda row: tuple(row[key] for key in keys))


def write(sheet: dict[str, Any], output: storage.Path) -> None:
    """Writes datasheet.json, .md and .html."""
    storage.write_text(output / "datasheet.md", markdown(sheet))
    storage.write_text(output / "datasheet.html", page(sheet))
    storage.write_json(output / "datasheet.json", sheet)


def funnel(sheet: dict[str, Any]) -> list[tuple]:
    """Rows (source, what, documents, bytes), from what was read through every rule to what was kept."""
    rows: list[tuple] = []
    for source, numbers in sheet["sources"].items():
        rows.append((source, "read", numbers["read"]["documents"], numbers["read"]["bytes"]))
        for stage in numbers["stages"]:
            for rule, part in sorted(stage["rejected"].items()):
                rows.append((source, f"less {stage['stage']}: {rule}", part["documents"], part["bytes"]))
            for rule, part in sorted(stage["edited"].items()):
                rows.append((source, f"less {stage['stage']}: {rule} ({part['edits']:,} edits)", 0, part["bytes"]))
        for key in ("kept", "train", "validation"):
            rows.append((source, key, numbers[key]["documents"], numbers[key]["bytes"]))
    return rows


def markdown(sheet: dict[str, Any]) -> str:
    """The datasheet for reading in a terminal or a repository."""
    lines = ["# Datasheet", "", summary(sheet), "", "| source | | documents | bytes |", "|---|---|--:|--:|"]
    lines += [f"| {source} | {what} | {number:,} | {size:,} |" for source, what, number, size in funnel(sheet)]
    lines += ["", "## Mixture", "", "| source | tokens | share | seen | epochs |", "|---|--:|--:|--:|--:|"]
    for share in sheet["mixture"]["shares"]:
        numbers = f"{share['tokens']:,} | {100 * share['share']:.1f} % | {share['seen']:,} | {share['epochs']:.2f}"
        lines.append(f"| {share['source']} | {numbers} |")
    lines += ["", *(f"Warning: {warning}" for warning in sheet["mixture"]["warnings"]), f"Tokens: {sheet['tokens']}."]
    for source, numbers in sheet["sources"].items():
        lines += ["", f"## {source}", "", f"Duplicates: {100 * numbers['duplicates']['rate']:.1f} % of what was read."]
        for what in ("languages", "licences", "domains"):
            if numbers[what]:
                lines.append(
                    f"{what.capitalize()}: " + ", ".join(f"{key} {n:,}" for key, n in numbers[what].items()) + "."
                )
        for kind, examples in numbers["examples"].items():
            lines += ["", f"## {source}: {kind}, examples", ""]
            lines += [f"- {reason(example)} `{_short(example)}`" for example in examples] or ["none"]
    lines += ["", "## Recipe", "", "```", sheet["config"] or json_lines(sheet["recipe"]), "```", ""]
    lines += [versions(sheet), ""]
    return "\n".join(lines)


def _short(example: dict[str, Any]) -> str:
    return " ".join((example["excerpt"] or "").split())[:80].replace("`", "'")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
