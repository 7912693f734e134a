"""The datasheet as one HTML page that needs nothing else: funnels and histograms are drawn as SVG."""

import html
from typing import Any

STYLE = """
:root{--ink:#1d2733;--soft:#64748b;--line:#e2e8f0;--kept:#2f6f9f;--gone:#d9e4ec;--warn:#b45309}
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink)}
h1{margin-bottom:0} h2{margin-top:3rem;border-bottom:2px solid var(--kept)} h3{margin:1.5rem 0 .3rem;font-size:1rem}
table{border-collapse:collapse;margin:.5rem 0 1rem}
td,th{padding:.15rem .8rem .15rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} tr.total td{font-weight:600}
pre{background:#f6f8fa;padding:.6rem;overflow:auto;white-space:pre-wrap;margin:.2rem 0 .8rem;font-size:13px}
p.reason{margin:.6rem 0 0;color:var(--soft)} .warn{color:var(--warn);font-weight:600}
.row{display:flex;flex-wrap:wrap;gap:0 3rem} .tiles{display:flex;flex-wrap:wrap;gap:1rem;margin:1.2rem 0}
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.5rem 1rem} .tile strong{display:block;font-size:1.4rem}
summary{font-weight:600;margin-top:1rem;cursor:pointer}
svg{display:block;max-width:100%;height:auto} svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg text.soft{fill:var(--soft)}
"""
FUNNEL_WIDTH, FUNNEL_ROW, FUNNEL_BAR, FUNNEL_LABEL = 940, 46, 22, 170
BAR_WIDTH, BAR_HEIGHT = 26, 90


def page(sheet: dict[str, Any]) -> str:
    """The whole page."""
    parts = ["<h1>Datasheet</h1>", f"<p>{html.escape(summary(sheet))}</p>", _tiles(sheet["total"])]
    parts += ["<h2>Mixture</h2>", _mixture(sheet["mixture"]), f"<p>Tokens are {html.escape(sheet['tokens'])}.</p>"]
    for source, numbers in sheet["sources"].items():
        parts += [f"<h2>{html.escape(source)}</h2>", funnel_picture(numbers), _stage_table(numbers)]
        rate = numbers["duplicates"]
        parts.append(f"<p>Duplicates: {rate['number']:,} documents, {100 * rate['rate']:.1f} % of what was read.</p>")
        parts += ["<div class=row>", *_histograms(numbers), "</div><div class=row>"]
        parts += [_counted(what, numbers[what]) for what in ("languages", "licences", "domains") if numbers[what]]
        parts.append("</div>")
        for kind, examples in numbers["examples"].items():
            is_open = " open" if kind == "kept" else ""
            parts.append(f"<details{is_open}><summary>{kind.capitalize()}, {len(examples)} examples</summary>")
            for example in examples:
                text = html.escape(example["excerpt"] or "")
                parts.append(f"<p class=reason>{html.escape(reason(example))}</p><pre>{text}</pre>")
            parts.append("</details>")
    parts.append(f"<h2>Recipe</h2><pre>{html.escape(sheet['config'] or json_lines(sheet['recipe']))}</pre>")
    parts.append(f"<p>{html.escape(versions(sheet))}, fingerprint {sheet['fingerprint']}</p>")
    body = "\n".join(parts)
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Datasheet</title>"
    return f"<!doctype html><html lang=en>{head}<style>{STYLE}</style>{body}</html>\n"


def funnel_picture(numbers: dict[str, Any]) -> str:
    """What is left after each stage of a source, by bytes, as an SVG that narrows from top to bottom."""
    first = numbers["read"]
    steps = [("in the input", first)]
    for stage in numbers["stages"]:
        doing = "reading" if stage["stage"] == "read" else stage["stage"]
        steps.append((f"after {doing}", stage["out"]))
    room = FUNNEL_WIDTH - FUNNEL_LABEL - 330
    middle = FUNNEL_LABEL + room / 2
    widths = [max(1.0, room * step["bytes"] / max(1, first["bytes"])) for _, step in steps]
    shapes = []
    for index, ((label, step), width) in enumerate(zip(steps, widths, strict=True)):
        top = index * FUNNEL_ROW + 4
        left, right = middle - width / 2, middle + width / 2
        shapes.append(f"<rect x={left:.1f} y={top} width={width:.1f} height={FUNNEL_BAR} rx=2 fill='#2f6f9f'/>")
        if index + 1 < len(steps):
            below = widths[index + 1]
            corners = [(left, top + FUNNEL_BAR), (right, top + FUNNEL_BAR)]
            corners += [(middle + below / 2, top + FUNNEL_ROW), (middle - below / 2, top + FUNNEL_ROW)]
            points = " ".join(f"{x:.1f},{y}" for x, y in corners)
            shapes.append(f"<polygon points='{points}' fill='#d9e4ec'/>")
        middle_line = top + FUNNEL_BAR - 6
        numbers_text = f"{step['documents']:,} documents · {shown_bytes(step['bytes'])}"
        share = f"{100 * step['bytes'] / max(1, first['bytes']):.1f} %"
        shapes.append(f"<text x=0 y={middle_line}>{html.escape(label)}</text>")
        shapes.append(f"<text x={FUNNEL_WIDTH - 310} y={middle_line}>{numbers_text}</text>")
        shapes.append(f"<text class=soft x={FUNNEL_WIDTH} y={middle_line} text-anchor=end>{share}</text>")
    height = len(steps) * FUNNEL_ROW
    picture = "".join(shapes)
    return f"<svg viewBox='0 0 {FUNNEL_WIDTH} {height}' width={FUNNEL_WIDTH} role=img>{picture}</svg>"


def histogram(title: str, bins: list[tuple[str, int, int]]) -> str:
    """Bars of (label, all, the part of them that was kept), as an SVG under a heading."""
    largest = max([1, *(total for _, total, _ in bins)])
    shapes = []
    for index, (label, total, kept) in enumerate(bins):
        left, base = index * BAR_WIDTH + 4, BAR_HEIGHT + 4
        for number, colour in ((total, "#d9e4ec"), (kept, "#2f6f9f")):
            height = BAR_HEIGHT * number / largest
            shapes.append(
                f"<rect x={left} y={base - height:.1f} width={BAR_WIDTH - 6} height={height:.1f} fill='{colour}'>"
                f"<title>{html.escape(label)}: {total:,}, kept {kept:,}</title></rect>"
            )
        if index % (1 if len(label) < 4 else 2) == 0:
            shapes.append(f"<text class=soft x={left} y={base + 16} font-size=10>{html.escape(label)}</text>")
    width, height = max(180, len(bins) * BAR_WIDTH + 30), BAR_HEIGHT + 28
    picture = "".join(shapes)
    heading = f"<h3>{html.escape(title)}</h3>"
    return f"<div>{heading}<svg viewBox='0 0 {width} {height}' width={width} role=img>{picture}</svg></div>"


def _histograms(numbers: dict[str, Any]) -> list[str]:
    read, kept = numbers["lengths"]["read"], numbers["lengths"]["kept"]
    bins = sorted({int(bin_) for bin_ in (*read, *kept)})
    lengths = [(shown_bytes(1 << bin_), read.get(str(bin_), 0), kept.get(str(bin_), 0)) for bin_ in bins]
    pictures = [histogram("Bytes a document, read and kept", lengths)]
    for stage in numbers["stages"]:
        for tag, by_value in sorted(stage["tagged"].items()):
            counted = {value: number["documents"] for value, number in by_value.items()}
            if all(_is_number(value) for value in counted):
                in_order = sorted(counted.items(), key=lambda item: float(item[0]))
                pictures.append(
                    histogram(f"{tag}, by {stage['stage']}", [(f"{float(v):g}", n, n) for v, n in in_order])
                )
            elif tag not in ("language", "license", "licence"):
                pictures.append(_counted(f"{tag}, by {stage['stage']}", counted))
    return pictures


def _tiles(total: dict[str, dict[str, int]]) -> str:
    tiles = []
    for key in ("read", "kept", "train", "validation"):
        documents, size, tokens = (total[key][unit] for unit in ("documents", "bytes", "tokens"))
        size = f"documents, {shown_bytes(size)}, about {tokens:,} tokens"
        tiles.append(f"<div class=tile>{key}<strong>{documents:,}</strong>{size}</div>")
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _mixture(mixture: dict[str, Any]) -> str:
    head = "<tr><th>source<th class=n>tokens<th class=n>share<th class=n>seen<th class=n>epochs"
    rows = [
        f"<tr><td>{html.escape(share['source'])}<td class=n>{share['tokens']:,}<td class=n>{100 * share['share']:.1f} %"
        f"<td class=n>{share['seen']:,}<td class=n>{share['epochs']:.2f}"
        for share in mixture["shares"]
    ]
    said = "".join(f"<p class=warn>{html.escape(warning)}</p>" for warning in mixture["warnings"])
    return f"<table>{head}{''.join(rows)}</table>{said}"


def _stage_table(numbers: dict[str, Any]) -> str:
    head = (
        "<tr><th>stage<th>rule<th class=n>documents<th class=n>bytes<th class=n>tokens<th class=n>of the stage's input"
    )
    rows = []
    for stage in numbers["stages"]:
        entering = max(1, stage["in"]["documents"])
        for rule, part in sorted(stage["rejected"].items(), key=lambda item: -item[1]["documents"]):
            rows.append(
                f"<tr><td>{html.escape(stage['stage'])}<td>{html.escape(rule)}<td class=n>{part['documents']:,}"
                f"<td class=n>{part['bytes']:,}<td class=n>{part['tokens']:,}"
                f"<td class=n>{100 * part['documents'] / entering:.2f} %"
            )
        for rule, part in sorted(stage["edited"].items()):
            rows.append(
                f"<tr><td>{html.escape(stage['stage'])}<td>{html.escape(rule)}<td class=n>{part['edits']:,} edits"
                f"<td class=n>{part['bytes']:,}<td><td>"
            )
    for key in ("kept", "train", "validation"):
        part = numbers[key]
        rows.append(
            f"<tr class=total><td>{key}<td><td class=n>{part['documents']:,}<td class=n>{part['bytes']:,}"
            f"<td class=n>{part['tokens']:,}<td>"
        )
    return f"<h3>What was taken out, and why</h3><table>{head}{''.join(rows)}</table>"


def _counted(title: str, counted: dict[str, int]) -> str:
    rows = "".join(f"<tr><td>{html.escape(value)}<td class=n>{number:,}" for value, number in counted.items())
    return f"<div><h3>{html.escape(title.capitalize())}</h3><table>{rows}</table></div>"


def summary(sheet: dict[str, Any]) -> str:
    """What came of it, in a sentence or two."""
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


def reason(example: dict[str, Any]) -> str:
    """Where an example is from and, for a dropped one, why."""
    parts = [example["origin"]]
    if "rule" in example:
        parts.append(f"{example['stage']}: {example['rule']}")
    if "value" in example:
        parts.append(f"{example['value']:g}" + (f" against {example['threshold']:g}" if "threshold" in example else ""))
    if "duplicate_of" in example:
        parts.append(f"duplicate of {example['duplicate_of']}")
    return " · ".join(parts)


def versions(sheet: dict[str, Any]) -> str:
    """The versions of what made it."""
    return ", ".join(f"{name} {version}" for name, version in sheet["versions"].items())


def json_lines(value: dict[str, Any]) -> str:
    """A dictionary, an entry a line."""
    return "\n".join(f"{key}: {inner}" for key, inner in sorted(value.items()))


def shown_bytes(number: int) -> str:
    """ "1.5 MB" for people."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
