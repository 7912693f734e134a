"""The local engine: processes over shards with everything large on disk; a killed run goes on where it stopped.

    read      files, large ones in parts → documents and unreadable records, divided by a hash of the id into shards
    phase 0   each shard → sorted by id, map stages, evidence of the first keyed stage
    group     evidence of equal keys from all shards → what is worth deciding on → decisions
    phase 1   each shard → those decisions, more map stages, … the last phase writes the output

The output depends on documents and recipe only: not on workers, on the order of files or on interruptions.
"""

from pretrain.core.errors import RunError
from pretrain.curate import counts
from pretrain.curate.inputs import InputFile, batch_files, divide
from pretrain.curate.readers import is_divisible
from pretrain.curate.reading import PROBLEMS, READ
from pretrain.curate.tasks import Plan, decide_task, group_task, read_task, shard_task
from pretrain.curate.workers import Task, Workers

READ_TASK_FILES = 128


class TooMuchUnreadable(RunError):
    """More of the input cannot be read than the recipe allows."""


def run(plan: Plan, files: list[InputFile], max_unreadable: float, workers: int | None) -> dict:
    """Does the whole job and checks its books.

    Returns:
        The sum of all tasks' counts: "read", "kept", "lengths", "kept_lengths", "splits", "stages" (in the recipe's
        order) and lists of examples.

    Raises:
        TooMuchUnreadable: more than `max_unreadable` of the records.
        RunError: a worker died, or the books do not balance.
    """
    with Workers(workers, plan) as pool:
        groups = read_groups(plan, files)
        tasks = [Task(read_task, (group, index), read_summary(plan, index)) for index, group in enumerate(groups)]
        summaries = pool.run("curate: read", tasks)
        check_readable(summaries, max_unreadable)
        shard_summaries = []
        for number in range(len(plan.phases)):
            shard_summaries += _run_phase(plan, number, len(groups), pool)
    return total_of(plan, summaries, shard_summaries)


def read_groups(plan: Plan, files: list[InputFile]) -> list[list[InputFile]]:
    """What each reading task reads: a large file, a part of a very large one, or several small ones."""
    divided = [divide(file, plan.read_bytes) if is_divisible(file, plan.fields) else [file] for file in files]
    return batch_files([part for parts in divided for part in parts], plan.read_bytes, READ_TASK_FILES)


def _run_phase(plan: Plan, number: int, readers: int, pool: Workers) -> list[dict]:
    phase = plan.phases[number]
    label = ", ".join(stage.name for stage in phase.stages) or "write"
    tasks = [
        Task(shard_task, (number, shard, readers), shard_summary(plan, number, shard)) for shard in range(plan.shards)
    ]
    summaries = pool.run(f"curate: {label}", tasks)
    if phase.keyed is not None:
        name = phase.keyed.name
        tasks = [
            Task(group_task, (number, partition), plan.path(number, f"{partition}.groups.json"))
            for partition in range(plan.shards)
        ]
        pool.run(f"curate: {name}, groups", tasks)
        pool.run(f"curate: {name}, decisions", [Task(decide_task, (number,), plan.path(number, "decisions.json"))])
    return summaries


def read_summary(plan: Plan, index: int) -> str:
    """Where a reading task's summary goes."""
    return plan.path("read", f"{index}.json")


def shard_summary(plan: Plan, number: int, shard: int) -> str:
    """Where a shard's summary of phase `number` goes."""
    return plan.path(number, f"{shard}.json")


def total_of(plan: Plan, read: list[dict], shards: list[dict]) -> dict:
    """All summaries added up, in the order of tasks; see `run`.

    Raises:
        RunError: the books do not balance.
    """
    names = [READ, *(stage.name for phase in plan.phases for stage in phase.stages)]
    total: dict = {"read": {}, "stages": {name: {} for name in names}}
    for summary in read:
        counts.add(total["read"], summary["read"])
    for summary in shards:
        counts.add(total, {key: value for key, value in summary.items() if key != "documents"})
    counts.check_balance(total["read"], total["kept"], total["stages"])
    return total


def check_readable(summaries: list[dict], max_unreadable: float) -> None:
    """Compares unreadable records with all records.

    Raises:
        TooMuchUnreadable: they are more than `max_unreadable` of them; the message lists the first.
    """
    documents = sum(summary["documents"] for summary in summaries)
    unreadable = sum(summary["unreadable"] for summary in summaries)
    if unreadable <= max_unreadable * documents:
        return
    problems = [problem for summary in summaries for problem in summary["problems"]]
    listed = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS])
    more = f"\n  and {unreadable - PROBLEMS:,} more" if unreadable > PROBLEMS else ""
    raise TooMuchUnreadable(
        f"{unreadable:,} of {documents:,} records are unreadable; Recipe.max_unreadable is {max_unreadable:g}; "
        f"repair them, name other fields (Fields.text) or raise the limit:{listed}{more}"
    )
