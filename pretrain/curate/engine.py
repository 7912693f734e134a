"""The local engine: processes over shards with everything large on disk; a killed run goes on where it stopped.

    read      each file → documents and unreadable records, divided by a hash of the id into shards
    phase 0   each shard → sorted by id, map stages, evidence of the first keyed stage
    group     evidence of equal keys from all shards → what is worth deciding on → decisions
    phase 1   each shard → those decisions, more map stages, … the last phase writes the output

The output depends on documents and recipe only: not on workers, on the order of files or on interruptions.
"""

import shutil

from pretrain.core.errors import RunError
from pretrain.curate import counts
from pretrain.curate.inputs import InputFile, batch_files
from pretrain.curate.reading import READ
from pretrain.curate.tasks import PROBLEMS, Plan, decide_task, group_task, read_task, shard_task
from pretrain.curate.workers import Task, Workers

READ_TASK_BYTES, READ_TASK_FILES = 16 << 20, 128


def run(plan: Plan, files: list[InputFile], max_unreadable: float, workers: int | None) -> dict:
    """Does the whole job and checks its books.

    Returns:
        The sum of all tasks' counts: "read", "kept", "lengths", "kept_lengths", "splits", "stages" (in the recipe's
        order) and lists of examples.

    Raises:
        RunError: more than `max_unreadable` of the records cannot be read, a worker died, or the books do not balance.
    """
    with Workers(workers, plan) as pool:
        groups = batch_files(files, READ_TASK_BYTES, READ_TASK_FILES)
        tasks = [
            Task(read_task, (group, index), plan.path("read", f"{index}.json")) for index, group in enumerate(groups)
        ]
        summaries = pool.run("curate: read", tasks)
        _check_readable(plan, summaries, max_unreadable)
        names = [READ, *(stage.name for phase in plan.phases for stage in phase.stages)]
        total: dict = {"read": {}, "stages": {name: {} for name in names}, "examples_kept": [], "examples_dropped": []}
        for summary in summaries:
            counts.add(total["read"], summary["read"])
        for number in range(len(plan.phases)):
            _run_phase(plan, number, len(groups), pool, total)
    counts.check_balance(total["read"], total["kept"], total["stages"])
    return total


def _run_phase(plan: Plan, number: int, readers: int, pool: Workers, total: dict) -> None:
    phase = plan.phases[number]
    label = ", ".join(stage.name for stage in phase.stages) or "write"
    tasks = [
        Task(shard_task, (number, shard, readers), plan.path(number, f"{shard}.json")) for shard in range(plan.shards)
    ]
    for summary in pool.run(f"curate: {label}", tasks):
        for key, value in summary.items():
            if isinstance(value, dict):
                counts.add(total.setdefault(key, {}), value)
            elif isinstance(value, list):
                total[key] += value
    if phase.keyed is not None:
        name = phase.keyed.name
        tasks = [
            Task(group_task, (number, partition), plan.path(number, f"{partition}.groups.json"))
            for partition in range(plan.shards)
        ]
        pool.run(f"curate: {name}, groups", tasks)
        pool.run(f"curate: {name}, decisions", [Task(decide_task, (number,), plan.path(number, "decisions.json"))])


def _check_readable(plan: Plan, summaries: list[dict], max_unreadable: float) -> None:
    documents = sum(summary["documents"] for summary in summaries)
    unreadable = sum(summary["unreadable"] for summary in summaries)
    if unreadable <= max_unreadable * documents:
        return
    shutil.rmtree(plan.work)  # files may be repaired without changing their size: read them again next time
    problems = [problem for summary in summaries for problem in summary["problems"]]
    listed = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS])
    more = f"\n  and {unreadable - PROBLEMS:,} more" if unreadable > PROBLEMS else ""
    raise RunError(
        f"{unreadable:,} of {documents:,} records are unreadable; Recipe.max_unreadable is {max_unreadable:g}; "
        f"repair them, name other fields (Fields.text) or raise the limit:{listed}{more}"
    )
