"""The commands for a run's checkpoints: `checkpoint list`, `verify`, `diff`, `prune` and `average`."""

import json
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from tqdm import tqdm

from pretrain.commands import Command, all_of
from pretrain.core.errors import RunError, check


def _workdir_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run, local or gs://...", flag_values=values)


def _json_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "print one JSON object on standard output instead of a table", flag_values=values)


def _steps_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_list("steps", [], "steps, separated by commas; default: all there are", flag_values=values)


def _diff_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("step", None, "step of --workdir; default: the newest", lower_bound=0, flag_values=values)
    flags.DEFINE_string("other", None, "folder of the other run; default: --workdir", flag_values=values)
    flags.DEFINE_integer(
        "other_step", None, "step of the other; default: its newest", lower_bound=0, flag_values=values
    )


def _prune_flags(values: flags.FlagValues) -> None:
    number = {"lower_bound": 0, "flag_values": values}
    flags.DEFINE_integer("keep", 3, "how many of the newest to keep", **{**number, "lower_bound": 1})
    flags.DEFINE_integer("keep_every", 0, "keep multiples of this; 0: none for that", **number)
    flags.DEFINE_integer("keep_best", 0, "how many of the best to keep", **number)
    flags.DEFINE_string("best_metric", "validation_loss", "metric the best are chosen by", flag_values=values)
    flags.DEFINE_enum("best_mode", "min", ["min", "max"], "whether less or more is better", flag_values=values)
    flags.DEFINE_bool("damaged", False, "also remove what was set aside or not finished", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what would be removed, and remove nothing", flag_values=values)


def _average_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", None, "workdir to make, for evaluate, generate and --init_from", flag_values=values)
    flags.DEFINE_float(
        "decay", None, "weights decay ** (newest - step), an exponential moving average; default: all the same",
        lower_bound=0, upper_bound=1, flag_values=values,
    )  # fmt: skip


def _folder(workdir: str | None, flag: str = "--workdir"):
    from pretrain.core.storage import Path
    from pretrain.train.checkpoint_folder import CheckpointFolder

    check(bool(workdir), f"{flag} is missing: the folder of the run, e.g. {flag}=runs/quickstart")
    folder = CheckpointFolder(Path(workdir) / "checkpoints")
    check(folder.path.exists(), f"no checkpoint in {workdir}: run `pretrain train` first")
    return folder


def _chosen(values: flags.FlagValues, folder) -> list[int]:
    there = folder.steps()
    for step in values.steps:
        check(step.isascii() and step.isdigit(), f"--steps={','.join(values.steps)}: {step!r} is not a step")
    wanted = sorted({int(step) for step in values.steps}) or there
    missing = [step for step in wanted if step not in there]
    check(not missing, f"no checkpoint of step {missing[0] if missing else ''} in {folder.path}; it holds {there}")
    return wanted


def _list(values, bindings):
    from pretrain.train.checkpoint_listing import describe

    _print(describe(_folder(values.workdir)), _list_table, values.json)


def _verify(values, bindings):
    from pretrain.train.checkpoint_listing import describe

    folder = _folder(values.workdir)
    rows = describe(folder, _chosen(values, folder))
    _print(rows, _list_table, values.json)
    bad = [str(row["step"]) for row in rows if row["state"] != "whole"]
    if bad:
        raise RunError(f"{folder.path}: not whole: {', '.join(bad)}")


def _diff(values, bindings):
    from pretrain.train import checkpoint_arithmetic

    one, other = _folder(values.workdir), _folder(values.other or values.workdir, "--other")
    result = checkpoint_arithmetic.difference(
        checkpoint_arithmetic.whole(one, values.step), checkpoint_arithmetic.whole(other, values.other_step)
    )
    _print(result, _difference_table, values.json)


def _prune(values, bindings):
    from pretrain.train.checkpoint_listing import prune
    from pretrain.train.checkpoint_rules import Checkpointing

    names = ("keep", "keep_every", "keep_best", "best_metric", "best_mode")
    rules = Checkpointing(**{name: getattr(values, name) for name in names}, every=1, pin=())
    print("\n".join(prune(_folder(values.workdir), rules, damaged=values.damaged, dry_run=values.dry_run)))


def _average(values, bindings):
    from pretrain.train import checkpoint_arithmetic

    folder = _folder(values.workdir)
    check(bool(values.output), "--output is missing: the workdir to make of the average")
    steps = _chosen(values, folder)
    where = checkpoint_arithmetic.average(values.workdir, steps, values.output, decay=values.decay)
    print(f"{where}: the average of steps {', '.join(map(str, steps))}")


def _print(result: Any, table: Callable[[Any], str], as_json: bool) -> None:
    print(json.dumps(result) if as_json else table(result))


def _list_table(rows: list[dict[str, Any]]) -> str:
    from pretrain.plan.tables import table

    lines = [["step", "age", "MB", "loss", "validation", "state"]]
    for row in rows:
        age = None if row["saved"] is None else tqdm.format_interval(time.time() - row["saved"])
        marks = [row["state"], "parameters only" if row["holds"] == "params" else None, "best" if row["best"] else None]
        marks += [f"pinned: {row['pinned']}" if row["pinned"] else None, row["reason"]]
        numbers = [_number(row["bytes"] and row["bytes"] / 1e6, ",.1f")]
        numbers += [_number(row[name], ".4f") for name in ("loss", "validation_loss")]
        lines.append([str(row["step"]), age or "-", *numbers, ", ".join(filter(None, marks))])
    return table(lines) if rows else "no checkpoints"


def _difference_table(result: dict[str, Any]) -> str:
    from pretrain.plan.tables import table

    lines = [["array", "largest", "mean", ""]]
    for array in result["arrays"]:
        numbers = [_number(array[name], ".3g") for name in ("largest", "mean")]
        lines.append([array["name"], *numbers, "identical" if array["identical"] else "differs"])
    host = f"the host's own state (data position) {'is the same' if result['position'] else 'differs'}"
    return f"{table(lines)}\n{host}\n{'identical' if result['identical'] else 'not identical'}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


CHECKPOINTS = {
    "checkpoint list": Command("a run's checkpoints: step, age, size, loss, whether whole, pinned, best",
                               all_of(_workdir_flag, _json_flag), _list),
    "checkpoint verify": Command("reads every byte of checkpoints and compares; exit code 1 if one is damaged",
                                 all_of(_workdir_flag, _json_flag, _steps_flag), _verify),
    "checkpoint diff": Command("two checkpoints, array by array: largest and mean difference",
                               all_of(_workdir_flag, _json_flag, _diff_flags), _diff),
    "checkpoint prune": Command("removes checkpoints that no rule keeps",
                                all_of(_workdir_flag, _prune_flags), _prune),
    "checkpoint average": Command("the mean of several steps' parameters, as a workdir of its own",
                                  all_of(_workdir_flag, _steps_flag, _average_flags), _average),
}  # fmt: skip
