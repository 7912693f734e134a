"""Mutated input for the command line and the parsers, in one process, with an eye on everything that is written.

A case passes when the program answers with an exit code and at most one line of error: no exception leaves `main`, no
traceback is printed, it is done in time, and no file outside of the sandbox is made, changed or removed.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable

from tiny import ROOT, TINY_GIN

from pretrain.core.errors import RunError, UserError
from pretrain.core.storage import Path
from pretrain.main import COMMANDS, _flag_values, main
from pretrain.train.events import read_events
from pretrain.train.manifest import Damaged, Manifest
from pretrain.train.metrics import MetricsLog, read_metrics
from pretrain.train.timekeeper import Timekeeper

SECONDS = 300  # for one case, on a machine that does other things as well
NASTY = (
    "", "0", "-1", "1", "3.5", "nan", "inf", "-inf", "1e308", "99999999999999999999", "True", "None", "'x'", "''", "()",
    "(1, 2)", "[]", "{}", "{'a': 1}", "'../../escape'", "'/proc/self/mem'", "'\\x00'", "@Causal()", "@Nothing", "%NONE",
    "'gs://'", "\"'", "[" * 300, "1" * 5000, "'" + "a" * 5000 + "'", "é\u202e", "lambda: 0", "__import__('os')",
)  # fmt: skip


class Watch:
    """Notes every path that Python opens for writing, makes, renames or removes, while it is on."""

    WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._hear)  # for the life of the process: Python takes none back

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self.seen.append(os.path.realpath(os.fsdecode(arguments[0])))
        elif event in self.WRITES:
            paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
            self.seen += [os.path.realpath(os.fsdecode(path)) for path in paths]

    @contextlib.contextmanager
    def outside(self, *allowed: pathlib.Path):
        """Raises where something outside of the folders was written during the block."""
        allowed = [os.path.realpath(path) for path in (*allowed, "/dev", "/proc", *_caches())]
        self.seen, self.on = [], True
        try:
            yield
        finally:
            self.on = False
        stray = [path for path in self.seen if not any(path == a or path.startswith(a + os.sep) for a in allowed)]
        stray = [path for path in stray if "__pycache__" not in path]
        assert not stray, f"written outside: {stray[:5]}"


WATCH = Watch()


def _caches() -> list[str]:
    """Where libraries keep compiled programs and fonts, and this project its copies of remote files."""
    own = os.path.join(tempfile.gettempdir(), f"pretrain-{os.getuid()}")
    home = [os.path.expanduser(folder) for folder in ("~/.cache", "~/.config/matplotlib")]
    return [os.environ.get("JAX_COMPILATION_CACHE_DIR", own), *home, own]


@contextlib.contextmanager
def in_time(seconds: int = SECONDS):
    """Raises TimeoutError in the main thread where the block takes longer."""

    def late(*_):
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled, or put in."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 8, 64))
        kind = chance.randrange(4)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = chance.randbytes(length)
    return bytes(data)


def mutate_lines(chance: random.Random, text: str) -> str:
    """Lines dropped, doubled, moved, or given another value; now and then bytes as well."""
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        kind = chance.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, chance.choice(lines))
        elif kind <= 4 and "=" in lines[at]:
            lines[at] = f"{lines[at].partition('=')[0]}= {chance.choice(NASTY)}"
        else:
            lines[at] = mutate_bytes(chance, lines[at].encode()).decode("utf-8", "replace")
        if not lines:
            return ""
    return "\n".join(lines) + "\n"


def mutate_document(chance: random.Random, name: str, text: str) -> str:
    """A value changed in a JSON file, or in one line of a JSONL file."""
    if not name.endswith(".jsonl"):
        return json.dumps(mutate_json(chance, json.loads(text)))
    lines = text.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = json.dumps(mutate_json(chance, json.loads(lines[at])))
    return "\n".join(lines) + "\n"


def mutate_json(chance: random.Random, value):
    """One value somewhere in a JSON value becomes another, or goes, or gets another name."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(sorted(value))
        if chance.random() < 0.2:
            return {key: item for key, item in value.items() if key != name}
        if chance.random() < 0.1:
            return {(f"../{key}" if key == name else key): item for key, item in value.items()}
        return {**value, name: mutate_json(chance, value[name])}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [mutate_json(chance, item) if index == at else item for index, item in enumerate(value)]
    others = (
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        float("nan"),
        "",
        "../../escape",
        "/etc/passwd",
        "\0",
        [],
        {},
        [[]],
        "x",
    )
    return chance.choice(others)


def run_main(arguments: list[str], *allowed: pathlib.Path) -> int:
    """Exit code of a command line; raises AssertionError or TimeoutError where it does not pass."""
    told, said = io.StringIO(), io.StringIO()
    with WATCH.outside(*allowed), in_time(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(said):
        code = main(arguments)
    assert code in (0, 1, 2), (code, arguments)
    errors = [line for line in told.getvalue().splitlines() if line.startswith("pretrain: ")]
    assert "Traceback" not in told.getvalue() and (code == 0 or not arguments or len(errors) == 1), (
        arguments,
        told.getvalue()[-500:],
    )
    return code


def gin_case(chance: random.Random, sandbox: pathlib.Path, _) -> None:
    """A mutated gin file: every command reads it first; `evaluate` then finds no checkpoint and ends."""
    files = [TINY_GIN, *sorted((ROOT / "gin_configs" / "runs").glob("*.gin"))]
    text = chance.choice(files).read_text()
    file = sandbox / "mutated.gin"
    if chance.random() < 0.8:
        file.write_text(mutate_lines(chance, text))
    else:
        file.write_bytes(mutate_bytes(chance, text.encode()))
    binding = f"--gin.{chance.choice(('TRAIN_STEPS', 'Training.seed', 'X', 'a/b.c', ''))}={chance.choice(NASTY)}"
    extra = [binding] if chance.random() < 0.3 else []
    assert run_main(["evaluate", f"--gin_file={file}", f"--workdir={sandbox / 'run'}", *extra], sandbox) != 0


def manifest_case(chance: random.Random, sandbox: pathlib.Path, original: pathlib.Path) -> None:
    """A mutated manifest of a checkpoint is damage; its digest, made anew, does not help it."""
    text = (original / "checkpoints" / "40" / "manifest.json").read_text()
    if chance.random() < 0.5:
        mutated = mutate_bytes(chance, text.encode()).decode("utf-8", "replace")
    else:
        mutated = json.dumps(mutate_json(chance, json.loads(text)))
    with in_time():
        try:
            manifest = Manifest.from_json(mutated)
        except Damaged:
            return
        assert json.loads(manifest.to_json()) == json.loads(text), "a changed manifest was taken for a good one"


def description_case(chance: random.Random, sandbox: pathlib.Path, original: pathlib.Path) -> None:
    """A mutated description of a finished stage; the commands that read it."""
    name = chance.choice(("cache/complete.json", "config.json", "data.json", "cache/tokenizer/tokenizer_info.json"))
    file = sandbox / "run" / name
    text = (original / name).read_text()
    if chance.random() < 0.3:
        file.write_bytes(mutate_bytes(chance, text.encode()))
    else:
        file.write_text(json.dumps(mutate_json(chance, json.loads(text))))
    try:
        run_main(["inspect", f"--workdir={sandbox / 'run'}", "--rows=1"], sandbox)
    finally:
        file.write_text(text)


def metrics_case(chance: random.Random, sandbox: pathlib.Path, original: pathlib.Path) -> None:
    """Mutated metrics and events: read, and opened by a run that goes on."""
    folder = sandbox / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = "".join((original / "metrics.jsonl").read_text().splitlines(keepends=True)[:8])
    data = (mutate_document(chance, "metrics.jsonl", text) if chance.random() < 0.5 else text).encode()
    data = mutate_bytes(chance, data) if chance.random() < 0.6 else data
    (folder / "metrics.jsonl").write_bytes(data)
    (folder / "events.jsonl").write_bytes(data)
    with WATCH.outside(sandbox), in_time():
        for row in read_metrics(folder / "metrics.jsonl"):
            assert isinstance(row["step"], int)
        read_events(folder)
        if chance.random() < 0.1:
            with contextlib.suppress(UserError, RunError):
                MetricsLog(Path(folder), 4).close()


def report_case(chance: random.Random, sandbox: pathlib.Path, original: pathlib.Path) -> None:
    """The report of a run whose metrics, scores, samples or times were mutated; training goes on from the times."""
    name = chance.choice(("metrics.jsonl", "evaluation.json", "samples.jsonl", "environment.json", "goodput.json"))
    file, data = sandbox / "run" / name, (original / name).read_bytes()
    if chance.random() < 0.5:
        file.write_text(mutate_document(chance, name, data.decode()))
    else:
        file.write_bytes(mutate_bytes(chance, data))
    try:
        run_main(["report", f"--workdir={sandbox / 'run'}"], sandbox)
        if name == "goodput.json":
            quiet = contextlib.redirect_stderr(io.StringIO())
            with WATCH.outside(sandbox), in_time(), quiet, Timekeeper(sandbox / "run") as keeper:
                keeper.start(0)
    finally:
        file.write_bytes(data)


def command_case(chance: random.Random, sandbox: pathlib.Path, _) -> None:
    """A command line of wrong words: a workdir that holds no run, so that nothing long begins."""
    name = chance.choice(sorted(COMMANDS))
    words = name.split()
    flags = sorted(_flag_values(COMMANDS[name]))
    for flag in chance.sample(flags, k=min(len(flags), chance.randint(0, 3))):
        value = chance.choice(NASTY).strip("'")
        paths = (
            "workdir",
            "output",
            "other",
            "html",
            "write",
            "init_from",
            "input",
            "gin_file",
            "fit",
            "module_import",
        )
        if flag in paths or "file" in flag or "dir" in flag:
            value = str(sandbox / chance.choice(("nothing", "no/such", "file.txt")))
        words.append(f"--{flag}={value}" if chance.random() < 0.9 else f"--{flag}")
    if chance.random() < 0.3:
        words.append(chance.choice(("--gin.=", "--gin.X", "--gin.Training.steps=-1", "--", "-", "x", "--nothing=1")))
    if chance.random() < 0.2:
        words[0] = mutate_bytes(chance, words[0].encode()).decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        words = [word for word in words if "\0" not in word]  # no shell can pass that
    run_main(words, sandbox)


CASES: dict[str, tuple[int, Callable]] = {  # kind -> (how many of 100, the case)
    "gin": (35, gin_case),
    "manifest": (25, manifest_case),
    "description": (5, description_case),
    "metrics": (17, metrics_case),
    "report": (3, report_case),
    "command": (15, command_case),
}


def fuzz(sandbox: pathlib.Path, original: pathlib.Path, cases: int, seed: int) -> dict[str, int]:
    """Runs cases of every kind; how many of each.

    Args:
        sandbox: an empty folder, the only place where anything may be written.
        original: the workdir of a finished run.
        cases: in all.
        seed: of the first; each case can be repeated alone.

    Raises:
        AssertionError: some did not pass; the first ones are named with kind and seed.
    """
    shutil.copytree(original, sandbox / "run")
    kinds = [kind for kind, (share, _) in CASES.items() for _ in range(share)]
    done, failed = dict.fromkeys(CASES, 0), []
    for number in range(seed, seed + cases):
        chance = random.Random(number)
        kind = chance.choice(kinds)
        try:
            CASES[kind][1](chance, sandbox, original)
        except (Exception, SystemExit) as error:
            failed.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
        done[kind] += 1
    assert not failed, f"{len(failed)} of {cases} did not pass:\n" + "\n".join(failed[:20])
    return done
