"""Parts of the report about a run's troubles: what its time went to over all restarts, and what happened to it."""

import json
from collections.abc import Iterator
from typing import Any

from pretrain.report.markup import Markup, bars, element, fold, missing, table
from pretrain.report.quantities import count, duration, percent
from pretrain.report.results import Results

EVENTS = 200  # rows shown; of more, the newest
LABELS = {
    "productive": "training that counts",
    "compile": "compiling",
    "data_wait": "waiting for data",
    "checkpoint": "saving",
    "evaluation": "validation",
    "restart": "starting and restarting",
    "lost": "steps done again",
}
PLAIN = ("event", "kind", "step", "time", "action")  # columns, or not worth one


def goodput(results: Results) -> Iterator[Markup]:
    """A bar for each thing that time went to."""
    found = results.goodput
    if found is None:
        yield missing("Not recorded: training does that", "pretrain train")
        return
    seconds = found["seconds"]
    total = sum(seconds[name] for name in LABELS)
    times = len(found["incarnations"])
    text = f"{percent(seconds['productive'], total)} of {duration(total)} were training that counts"
    if times > 1:
        text += f"; the run was started {count(times)} times and did {count(found['lost_steps'])} steps again"
    yield element("p", f"{text}.")
    rows = [(label, seconds[name], percent(seconds[name], total)) for name, label in LABELS.items()]
    yield bars(rows, strong=LABELS["productive"])


def events(results: Results) -> Iterator[Markup]:
    """What happened, and what was done about it."""
    if not results.metrics and not results.events:
        yield missing("Not trained yet", "pretrain train")
        return
    if not results.events:
        yield element("p", "Nothing happened that had to be written down.")
        return
    shown = results.events[-EVENTS:]
    if len(shown) < len(results.events):
        yield element("p", f"The newest {count(EVENTS)} of {count(len(results.events))}; all are in events.jsonl.")
    rows = [
        [str(event["event"]), event["kind"], event.get("action", ""), _evidence(event), _step(event)] for event in shown
    ]
    yield table(["event", "what", "done about it", "evidence", "step"], rows, labels=4)
    yield element("p", "The batches behind an event: ", element("code", "pretrain inspect --event=N"), ".")


def _step(event: dict[str, Any]) -> str:
    return "" if event["step"] is None else count(event["step"])


def _evidence(event: dict[str, Any]) -> Markup:
    """Numbers and short words in the row, everything else behind a line to click on."""
    found = {name: value for name, value in event.items() if name not in PLAIN}
    short = {name: value for name, value in found.items() if len(json.dumps(value)) <= 40}
    text = ", ".join(f"{name} {value}" for name, value in short.items())
    if len(short) == len(found):
        return element("span", text)
    rest = {name: value for name, value in found.items() if name not in short}
    return fold(text or "more", element("pre", json.dumps(rest, indent=1, ensure_ascii=False)))
