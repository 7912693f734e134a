"""What a folder of checkpoints holds, read to the last byte, and what can go."""

from typing import Any

from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.checkpoint_rules import Checkpointing, kept_steps
from pretrain.train.manifest import MANIFEST, Damaged

_LOSSES = ("validation_loss", "loss")  # the best is the best by the first that any checkpoint has


def describe(folder: CheckpointFolder, steps: list[int] | None = None) -> list[dict[str, Any]]:
    """One JSON object a checkpoint, the oldest first; of `steps`, or of all there are and those that were set aside.

    "step", "state" ("whole", "damaged", "unfinished", "set aside"), "reason" (why it is not whole), "saved" (Unix
    seconds), "bytes", "holds", "pinned" (the reason, or None), "best" (True for one), "loss", "validation_loss".
    """
    pinned = folder.pinned()
    rows = [_describe(folder, step, pinned.get(step)) for step in (folder.steps() if steps is None else steps)]
    for name in reversed(_LOSSES):
        scored = [row for row in rows if row[name] is not None]
        best = min(scored, key=lambda row: (row[name], row["step"]), default=None)
        if best is not None:
            for row in rows:
                row["best"] = row is best
    if steps is None:
        rows += [_nothing(step, "unfinished", "its save was not finished") for step in folder.unfinished()]
        rows += [_nothing(step, "set aside", "it was found damaged") for step in folder.set_aside_steps()]
    return sorted(rows, key=lambda row: row["step"])


def prune(folder: CheckpointFolder, rules: Checkpointing, *, damaged: bool = False, dry_run: bool = False) -> list[str]:
    """Removes what no rule keeps, one line for each checkpoint; with `damaged` also what is of no use.

    A checkpoint is only removed when one that is whole is kept.
    """
    metrics, lines, useless = {}, [], []
    for row in describe(folder):
        if row["state"] == "whole":
            metrics[row["step"]] = {name: row[name] for name in _LOSSES if row[name] is not None}
            metrics[row["step"]] |= folder.manifest(row["step"]).metrics
        else:
            useless.append(row)
    kept = kept_steps(metrics, rules, pinned=folder.pinned())
    for step in metrics:
        lines.append(f"step {step}: " + (f"kept ({', '.join(kept[step])})" if step in kept else "removed"))
        if step not in kept and not dry_run:
            folder.remove(step)
    for row in useless:
        lines.append(f"step {row['step']}: {row['state']} ({row['reason']}), {'removed' if damaged else 'left alone'}")
    if damaged and not dry_run:
        for row in useless:
            (folder.remove if row["state"] == "damaged" else folder.remove_remains)(row["step"])
    return lines + (["nothing was removed: a dry run"] if dry_run else [])


def _describe(folder: CheckpointFolder, step: int, pinned: str | None) -> dict[str, Any]:
    try:
        manifest = folder.verify(step)
    except Damaged as damage:
        return {**_nothing(step, "damaged", str(damage)), "pinned": pinned}
    saved = (folder[step] / MANIFEST).stat().mtime
    losses = {name: manifest.metrics.get(name) for name in _LOSSES}
    about = {"state": "whole", "reason": None, "saved": saved, "bytes": manifest.bytes, "holds": manifest.holds}
    return {"step": step, **about, "pinned": pinned, "best": False, **losses}


def _nothing(step: int, state: str, reason: str) -> dict[str, Any]:
    about = {"state": state, "reason": reason, "saved": None, "bytes": None, "holds": None}
    return {"step": step, **about, "pinned": None, "best": False, **dict.fromkeys(_LOSSES)}
