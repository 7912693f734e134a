"""Plans of the presets for pods that are not there: the table of docs/scale.md, and peaks for a regression test.

    python benchmarks/pod_plans.py [ROW ...] [--write]

Each row is compiled by `pretrain plan` in a process of its own, one after another; --write renews the rows' entries in
benchmarks/pod_plans.json and the table between the marks in docs/scale.md. Goals are shares of what MaxText 0.2.5's
`train_compile` needs for the same model, batch, remat and precisions (jax 0.12, libtpu 0.0.51, flash attention, FSDP).
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "pod_plans.json"
PAGE = ROOT / "docs" / "scale.md"
MARKS = "<!-- plans: make plan-table -->", "<!-- end of plans -->"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan.

    Attributes:
        run: name of a file in gin_configs/runs.
        topology, slices: as `pretrain plan` takes them.
        bindings: over the run file.
        maxtext: arguments + temporaries of MaxText, GiB a chip, None where not measured.
        goal: share of it not to exceed.
    """

    run: str
    topology: str
    slices: int = 1
    bindings: tuple[str, ...] = ()
    maxtext: float | None = None
    goal: float | None = None

    def command(self) -> list[str]:
        """The arguments of `pretrain`."""
        flags = [f"--gin_file=gin_configs/runs/{self.run}.gin", f"--topology={self.topology}"]
        flags += [f"--slices={self.slices}"] if self.slices > 1 else []
        return ["plan", *flags, *(f"--gin.{binding}" for binding in self.bindings)]


ROWS = {
    "llama3-8b": Row("llama3_8b", "v5p:4x4x4", maxtext=14.58, goal=0.8),
    "llama3-8b minimal": Row("llama3_8b", "v5p:4x4x4", 1, ("REMAT='minimal'",), 52.57, 0.8),
    "llama3-8b v5e": Row("llama3_8b", "v5e:16x16", 1, ("BATCH_SIZE=256", "SEQUENCE_LENGTH=4096"), 4.40, 0.8),
    "llama2-7b": Row("llama2_7b", "v5e:16x16", maxtext=4.28, goal=0.9),
    "llama3-70b": Row("llama3_70b", "v5p:4x8x8", maxtext=35.92, goal=0.9),
    "gpt3-175b": Row("gpt3_175b", "v5p:8x8x8", maxtext=21.12, goal=0.9),
    "mixtral-8x7b": Row("mixtral_8x7b", "v5p:4x8x8", maxtext=14.52, goal=0.9),
    "llama3-8b, 2 microbatches": Row("llama3_8b", "v5p:4x4x4", 1, ("MICROBATCHES=2",), 14.58, 0.8),
    "llama3-8b minimal, 2 microbatches": Row(
        "llama3_8b", "v5p:4x4x4", 1, ("REMAT='minimal'", "MICROBATCHES=2"), 52.57, 0.8,
    ),
    "llama2-7b, 2 microbatches": Row("llama2_7b", "v5e:16x16", 1, ("MICROBATCHES=2",), 4.28, 0.9),
    "llama3-70b, 2 microbatches": Row("llama3_70b", "v5p:4x8x8", 1, ("MICROBATCHES=2",), 35.92, 0.9),
    "gpt3-175b, 2 microbatches": Row("gpt3_175b", "v5p:8x8x8", 1, ("MICROBATCHES=2",), 21.12, 0.9),
    "mixtral-8x7b, 4 microbatches": Row("mixtral_8x7b", "v5p:4x8x8", 1, ("MICROBATCHES=4",), 14.52, 0.9),
    "llama3-405b": Row("llama3_405b", "v5p:8x8x8", 2),
    "t5-11b": Row("t5_11b", "v5e:16x16"),
    "clip-l14": Row("clip_l14", "v5e:16x16"),
    "dit-xl2": Row("dit_xl2", "v5e:4x4"),
    "whisper-large": Row("whisper_large", "v5e:8x8"),
    "mixtral experts": Row("mixtral_8x7b", "v6e:16x16", 1, ("MeshConfig.expert=8",)),
    "gpt3-175b stages": Row(
        "gpt3_175b", "v5p:8x8x8", 1, ("MeshConfig.stage=8", "Parallelism.pipeline_microbatches=16"),
    ),
    "gpt3-175b stages, 1F1B": Row(
        "gpt3_175b", "v5p:8x8x8", 1,
        ("MeshConfig.stage=8", "Parallelism.pipeline_microbatches=16", "Parallelism.pipeline_schedule='1f1b'"),
    ),
}  # fmt: skip


def plan(row: Row) -> dict:
    """What `pretrain plan --json` says of a row, with seconds and GiB of the whole process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pretrain", *row.command(), "--json"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode in (0, 3), f"{' '.join(command)}: exit code {process.returncode}"
        output.seek(0)
        result = json.loads(output.read())
    seconds, memory = time.perf_counter() - start, usage.ru_maxrss * 1024
    return {**result, "process": {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "bytes": memory}}


def entry(row: Row, result: dict) -> dict:
    """What is kept of a plan."""
    largest = max(result["collectives"], key=lambda c: c["sent_bytes"], default=None)
    kept = ("chips", "remat", "parameters", "hbm_bytes", "fits", "model_flops", "hardware_flops", "kernels")
    kept += ("step_seconds", "mfu", "process")
    versions = {name: __import__(name).__version__ for name in ("jax", "libtpu")}
    return {
        "command": "pretrain " + " ".join(row.command()),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "mesh": {axis: ways for axis, ways in result["mesh"].items() if ways > 1},
        **{name: result[name] for name in kept},
        "largest_collective": largest,
    }


def table(record: dict) -> str:
    """Markdown of all rows that were made."""
    lines = [
        "| plan | chips, mesh | remat | GiB a chip: arguments + temporaries | of MaxText's, goal | peak of capacity "
        "| step at the roofline, MFU | sends most, GiB a chip | seconds, GiB here |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        if name not in record:
            continue
        e = record[name]
        arguments, temporaries, peak, capacity = (
            e["hbm_bytes"][key] / GIB for key in ("arguments", "temporaries", "peak", "capacity")
        )
        slices = f" x {row.slices}" if row.slices > 1 else ""
        mesh = " x ".join(f"{axis} {ways}" for axis, ways in e["mesh"].items())
        compared, most = "", e["largest_collective"]
        if row.maxtext:
            share = (arguments + temporaries) / row.maxtext
            compared = f"{share:.2f} of {row.maxtext}; {row.goal} {'reached' if share <= row.goal else 'missed'}"
        sent = f"{most['kind']} over {most['axes']}: {most['sent_bytes'] / GIB:.1f}" if most else "-"
        cells = [
            name, f"{row.topology}{slices}: {e['chips']}, {mesh}", e["remat"],
            f"{arguments:.2f} + {temporaries:.2f} = **{arguments + temporaries:.2f}**", compared,
            f"{peak:.2f} of {capacity:.0f}",
            f"{e['step_seconds']:.2f} s, {e['mfu']:.0%}", sent,
            f"{e['process']['seconds']:.0f}, {e['process']['bytes'] / GIB:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--write", action="store_true", help="renew the record and the table")
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in arguments.rows or ROWS:
        record[name] = entry(ROWS[name], plan(ROWS[name]))
        peak, process = record[name]["hbm_bytes"]["peak"] / GIB, record[name]["process"]
        print(f"{name}: peak {peak:.2f} GiB, {process['seconds']:.0f} s, {process['cpu']:.0f} s of CPU, "
              f"{process['bytes'] / GIB:.1f} GiB here", flush=True)  # fmt: skip
        if arguments.write:
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            before, _, rest = PAGE.read_text().partition(MARKS[0])
            PAGE.write_text(before + MARKS[0] + "\n" + table(record) + "\n" + MARKS[1] + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
    main()
