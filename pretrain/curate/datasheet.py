"""The datasheet: what went in, what was dropped and why, what came out; as JSON, Markdown and one HTML page.

After Gebru et al., "Datasheets for Datasets" (2018), and the tables that The Pile (Gao et al., 2020) published by
hand. It holds no times and no machine names, so the same recipe on the same input writes the same bytes.
"""

import html
import importlib.metadata
import platform
from collections import Counter
from typing import Any

from pretrain.core import storage
from pretrain.curate.inputs import InputFile

EXAMPLES = 3
PACKAGES = ("pretrain", "pyarrow", "xxhash")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f6f6f6;padding:.6rem;overflow:auto;white-space:pre-wrap}
.bar{background:#4a7ebb;height:.8rem;display:inline-block;vertical-align:middle}
h2{margin-top:2.5rem;border-bottom:2px solid #4a7ebb}
"""


def make(
    totals: dict, recipe: dict, files: list[InputFile], ignored: Counter, config_text: str, fingerprint: str
) -> dict[str, Any]:
    """The datasheet as plain JSON values.

    Args:
        totals: what the engine counted.
        recipe: the recipe's resolved settings.
        files: what was read.
        ignored: files of input folders that no reader knows, by extension.
        config_text: the configuration as the user gave it.
        fingerprint: of recipe and input.
    """
    sources = {source: _source(source, totals) for source in sorted(totals["read"])}
    return {
        "total": {
            key: {unit: sum(sheet[key][unit] for sheet in sources.values()) for unit in ("documents", "bytes")}
            for key in ("read", "kept", "train", "validation")
        },
        "sources": sources,
        "input": {"files": len(files), "bytes": sum(file.size for file in files), "ignored_files": dict(ignored)},
        "recipe": recipe,
        "config": config_text,
        "fingerprint": fingerprint,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


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
    return {
        "read": totals["read"][source],
        "stages": stages,
        "kept": totals["kept"].get(source, nothing),
        **{split: totals["splits"][split].get(source, nothing) for split in ("train", "validation")},
        "lengths": {
            "read": totals["lengths"].get(source, {}),
            "kept": totals["kept_lengths"].get(source, {}),
        },
        "examples": {
            "kept": _examples(totals["examples_kept"], source, ()),
            "dropped": _examples(totals["examples_dropped"], source, ("stage", "rule")),
        },
    }


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
    lines = ["# Datasheet", "", _summary(sheet), "", "| source | | documents | bytes |", "|---|---|--:|--:|"]
    lines += [f"| {source} | {what} | {number:,} | {size:,} |" for source, what, number, size in funnel(sheet)]
    for source, numbers in sheet["sources"].items():
        for kind, examples in numbers["examples"].items():
            lines += ["", f"## {source}: {kind}, examples", ""]
            lines += [f"- {_reason(example)} `{_short(example)}`" for example in examples] or ["none"]
    lines += ["", "## Recipe", "", "```", sheet["config"] or _json_lines(sheet["recipe"]), "```", ""]
    lines += [_versions(sheet), ""]
    return "\n".join(lines)


def page(sheet: dict[str, Any]) -> str:
    """The datasheet as one HTML page that needs nothing else."""
    parts = [f"<h1>Datasheet</h1><p>{html.escape(_summary(sheet))}</p>"]
    rows = funnel(sheet)
    for source, numbers in sheet["sources"].items():
        parts.append(f"<h2>{html.escape(source)}</h2>")
        parts.append(_funnel_table([row[1:] for row in rows if row[0] == source]))
        parts.append(_histogram(numbers["lengths"]))
        for kind, examples in numbers["examples"].items():
            parts.append(f"<h3>{kind}, examples</h3>")
            for example in examples:
                parts.append(
                    f"<p>{html.escape(_reason(example))}</p><pre>{html.escape(example['excerpt'] or '')}</pre>"
                )
    parts.append(f"<h2>Recipe</h2><pre>{html.escape(sheet['config'] or _json_lines(sheet['recipe']))}</pre>")
    parts.append(f"<p>{html.escape(_versions(sheet))}</p>")
    body = "\n".join(parts)
    head = f"<meta charset=utf-8><title>Datasheet</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en>{head}{body}</html>\n"


def _funnel_table(rows: list[tuple[str, int, int]]) -> str:
    largest = max(1, rows[0][2])
    cells = [
        f"<tr><td>{html.escape(what)}<td class=n>{number:,}<td class=n>{size:,}"
        f"<td><span class=bar style='width:{20 * size / largest:.2f}rem'></span>"
        for what, number, size in rows
    ]
    return f"<table><tr><th><th class=n>documents<th class=n>bytes<th>{''.join(cells)}</table>"


def _histogram(lengths: dict[str, dict[str, int]]) -> str:
    bins = sorted({int(bin_) for counted in lengths.values() for bin_ in counted})
    largest = max([1, *lengths["read"].values()])
    rows = []
    for bin_ in bins:
        read, kept = (lengths[key].get(str(bin_), 0) for key in ("read", "kept"))
        bar = f"<span class=bar style='width:{20 * kept / largest:.2f}rem'></span>"
        rows.append(f"<tr><td>{1 << bin_:,} …<td class=n>{read:,}<td class=n>{kept:,}<td>{bar}")
    head = "<tr><th>bytes a document<th class=n>read<th class=n>kept<th>"
    return f"<h3>Lengths</h3><table>{head}{''.join(rows)}</table>"


def _summary(sheet: dict[str, Any]) -> str:
    total = sheet["total"]
    text = (
        f"{total['kept']['documents']:,} of {total['read']['documents']:,} documents kept "
        f"({total['kept']['bytes']:,} of {total['read']['bytes']:,} bytes) from {sheet['input']['files']:,} files; "
        f"{total['validation']['documents']:,} documents ({total['validation']['bytes']:,} bytes) are for validation."
    )
    ignored = sheet["input"]["ignored_files"]
    if ignored:
        listed = ", ".join(f"{number:,} {extension}" for extension, number in sorted(ignored.items()))
        text += f" Files without a reader, not read: {listed}."
    return text


def _reason(example: dict[str, Any]) -> str:
    parts = [example["origin"]]
    if "rule" in example:
        parts.append(f"{example['stage']}: {example['rule']}")
    if "value" in example:
        parts.append(f"{example['value']:g} against {example['threshold']:g}")
    if "duplicate_of" in example:
        parts.append(f"duplicate of {example['duplicate_of']}")
    return " · ".join(parts)


def _short(example: dict[str, Any]) -> str:
    return " ".join((example["excerpt"] or "").split())[:80].replace("`", "'")


def _versions(sheet: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sheet["versions"].items())


def _json_lines(value: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {inner}" for key, inner in sorted(value.items()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
