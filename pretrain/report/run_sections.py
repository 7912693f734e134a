"""Parts of the report about the run: headline numbers, curves, evaluation, samples, configuration, environment."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pretrain.report.markup import Markup, bars, element, fold, missing, table
from pretrain.report.plots import Curve, plot
from pretrain.report.quantities import count, duration, short, significant
from pretrain.report.results import Results

SAMPLES, SAMPLE_CHARACTERS = 30, 4_000
TIME_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def headline(results: Results) -> Markup:
    """The few numbers that matter most, as far as they are known."""
    tiles: list[tuple[str, str]] = []
    if results.evaluation and "baselines" not in results.evaluation:
        tiles.append((significant(results.evaluation["loss"], 4), "loss on held-out text"))
    elif results.evaluation:
        best, number = min(results.evaluation["baselines"].items(), key=lambda item: item[1])
        bits = results.evaluation["bits_per_byte"]
        tiles.append(
            (
                significant(bits, 4),
                f"bits per byte of held-out text; the best baseline, {best}, needs {significant(number, 4)}",
            )
        )
        tiles.append((significant(results.evaluation["perplexity"]), "perplexity of a token"))
    if results.metrics:
        last, seconds = results.metrics[-1], training_seconds(results.metrics)
        tiles.append((short(last["tokens"]), f"tokens trained on, in {count(last['step'])} steps"))
        tiles.append((duration(seconds[-1]), f"of training at {short(last['tokens'] / seconds[-1])} tokens a second"))
    if results.cache:
        train = [splits["train"] for splits in results.cache["sources"].values() if "train" in splits]
        tiles.append((short(sum(entry["tokens"] for entry in train)), "tokens of training text"))
    if results.datasheet:
        kept, read = (results.datasheet["total"][key]["documents"] for key in ("kept", "read"))
        tiles.append((short(kept), f"documents kept of {count(read)} read"))
    return element(
        "div",
        *(element("div", element("b", number), element("span", text), class_="tile") for number, text in tiles),
        class_="tiles",
    )


def training_seconds(metrics: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds of training up to each row, from its tokens and its speed: validation and saving do not count."""
    before = np.array([0, *(row["tokens"] for row in metrics[:-1])], float)
    after = np.array([row["tokens"] for row in metrics], float)
    return np.cumsum((after - before) / np.array([row["tokens_per_second"] for row in metrics], float))


def training(results: Results) -> Iterator[Markup]:
    """Loss against tokens and time, learning rate, gradient norm, speed."""
    metrics = results.metrics
    if not metrics:
        yield missing("Not trained yet", "pretrain train")
        return
    yield element("p", _last_row(metrics))
    broken = [row["step"] for row in metrics if row.get("loss") is None]
    if broken:
        steps = f"{count(len(broken))} of the logged steps, first at step {count(broken[0])}"
        yield element("p", f"The loss was not a finite number at {steps}.")
    seen = _column(metrics, "tokens")
    seconds = training_seconds(metrics)
    unit, unit_name = next((unit for unit in TIME_UNITS if seconds[-1] >= 2 * unit[0]), TIME_UNITS[-1])
    plots = [
        plot("Loss", _losses(metrics, seen), "tokens", x_unit="tokens"),
        plot("Loss over time", _losses(metrics, seconds / unit), f"{unit_name} of training"),
    ]
    for name, title in (
        ("learning_rate", "Learning rate"),
        ("grad_norm", "Gradient norm"),
        ("tokens_per_second", "Tokens per second"),
        ("mfu", "Model FLOPs utilisation"),
    ):
        values = _column(metrics, name)
        if np.isfinite(values).any():
            log = name == "grad_norm"
            plots.append(plot(title, [Curve(title, seen, values)], "tokens", x_unit="tokens", log=log))
    yield element("div", *plots, class_="plots")


def _last_row(metrics: Sequence[dict[str, Any]]) -> str:
    last = metrics[-1]
    text = f"At step {count(last['step'])}, after {count(last['tokens'])} tokens"
    if last.get("loss") is not None:
        text += f": loss {significant(last['loss'], 4)} nats a token"
    validated = [row for row in metrics if row.get("validation_loss") is not None]
    if validated:
        best = min(validated, key=lambda row: row["validation_loss"])
        text += f"; best validation loss {significant(best['validation_loss'], 4)} at step {count(best['step'])}"
    return text + "."


def _losses(metrics: Sequence[dict[str, Any]], x: np.ndarray) -> list[Curve]:
    validation = _column(metrics, "validation_loss")
    there = np.isfinite(validation)
    curves = [Curve("training", x, _column(metrics, "loss"))]
    return curves + ([Curve("validation", x[there], validation[there], dots=True)] if there.any() else [])


def _column(metrics: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Values of all rows; not a number where a row has none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in metrics], float)


def evaluation(results: Results) -> Iterator[Markup]:
    """Bits per byte beside the baselines, or the objective's own numbers."""
    found = results.evaluation
    if found is None:
        yield missing("Not evaluated yet", "pretrain evaluate")
        return
    if "baselines" not in found:
        yield element("p", f"{found['objective']} on held-out text; the model of step {count(found['step'])}.")
        numbers = [(name, significant(value, 4)) for name, value in found.items() if isinstance(value, float)]
        yield table(["", "value"], numbers)
        return
    yield element(
        "p",
        f"Bits per byte of {count(found['bytes'])} held-out bytes ({count(found['tokens'])} tokens), less is better; "
        f"the model of step {count(found['step'])}, perplexity {significant(found['perplexity'], 4)} a token. "
        "The baselines compress each document alone.",
    )
    rows = [("this model", found["bits_per_byte"]), *sorted(found["baselines"].items(), key=lambda item: item[1])]
    yield bars([(name, value, significant(value, 4)) for name, value in rows], strong="this model")


def samples(results: Results) -> Iterator[Markup]:
    """What the model writes."""
    if not results.samples:
        yield missing("No samples of the configured prompts yet", "pretrain run")
        return
    yield element("p", "Prompts in colour, then what the model wrote.", class_="lead")
    for sample in results.samples[:SAMPLES]:
        text = sample["text"][:SAMPLE_CHARACTERS]
        cut = " …" if len(sample["text"]) > SAMPLE_CHARACTERS else ""
        yield element("pre", element("b", sample["prompt"]), text, cut)
    if len(results.samples) > SAMPLES:
        yield element("p", f"{count(len(results.samples) - SAMPLES)} more are in samples.jsonl.", class_="lead")


def configuration(results: Results) -> Iterator[Markup]:
    """The gin file that repeats the run."""
    command = element("code", "pretrain run --gin_file=config.gin --workdir=...")
    yield element("p", "The run's folder keeps it as config.gin; ", command, " repeats the run.")
    yield fold("gin configuration", element("pre", results.config.strip()))


def environment(results: Results) -> Iterator[Markup]:
    """Versions, devices and the commit."""
    found = results.environment
    if found is None:
        yield missing("Not recorded: training does that when it starts", "pretrain train")
        return
    git = found.get("git")
    devices = ", ".join(f"{kind} \u00d7 {number}" for kind, number in found["devices"].items())
    rows = [
        ["devices", f"{devices} ({found['backend']}), {count(found['processes'])} process(es)"],
        ["Python", found["python"]],
        ["platform", f"{found['platform']}, {found['processors']} processors"],
        *([name, version or "not installed"] for name, version in found["packages"].items()),
        ["commit", git["commit"] + (", with changes" if git["modified"] else "") if git else "not a git checkout"],
    ]
    yield table(["what", "training ran on"], rows, labels=2)
