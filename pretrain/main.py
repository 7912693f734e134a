"""The command line: `pretrain COMMAND --gin_file=FILE --workdir=DIR [--gin.NAME=VALUE ...]`.

Nothing heavy is imported before a command runs, so `--help` answers at once. Exit code 0: done; 1: the work failed;
2: the request cannot be met as asked; 130: interrupted.
"""

import difflib
import os
import signal
import sys
from collections.abc import Sequence

from absl import flags

from pretrain.checkpoints import CHECKPOINTS
from pretrain.commands import PIPELINE, Command
from pretrain.core import lifeline
from pretrain.core.console import Forgiving
from pretrain.core.errors import UserError, exit_code
from pretrain.planning import PLANNING
from pretrain.supervise import Supervisor

COMMANDS = {**PIPELINE, **CHECKPOINTS, **PLANNING}


def _flag_values(command: Command) -> flags.FlagValues:
    values = flags.FlagValues()
    command.define(values)
    return values


def usage() -> str:
    """Help for the whole program."""
    lines = ["usage: pretrain COMMAND --gin_file=FILE --workdir=DIR [--gin.NAME=VALUE ...]", "", "commands:"]
    lines += [f"  {name:<18} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "flags (each command's --help explains its own):"]
    names = {flag: None for command in COMMANDS.values() for flag in sorted(_flag_values(command))}
    lines += [
        "  " + " ".join(f"--{name}" for name in names),
        "  --gin.NAME=VALUE",
        "",
        "A macro such as TRAIN_STEPS, declared at the top of the gin file, is set by --gin.TRAIN_STEPS=100.",
    ]
    return "\n".join(lines)


def command_usage(name: str) -> str:
    """Help for one command."""
    command = COMMANDS[name]
    lines = [f"usage: pretrain {name} [flags]", "", command.help, "", "flags:"]
    values = _flag_values(command)
    for flag in sorted(values):
        lines += [f"  --{flag}", f"      {' '.join(values[flag].help.split())}"]
    lines += ["  --gin.NAME=VALUE", "      sets a macro of the gin files, or a parameter: --gin.Training.log_every=1"]
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> tuple[str, flags.FlagValues, list[str]]:
    """Splits a command line into command, flags and gin bindings.

    Raises:
        UserError: an unknown command or flag, or a value out of range.
    """
    name, *rest = _with_action(arguments)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"no such command: {name}; {hint}")
    bindings = [word[len("--gin.") :] for word in rest if word.startswith("--gin.")]
    values = _flag_values(COMMANDS[name])
    try:
        left = values(["pretrain", *(word for word in rest if not word.startswith("--gin."))])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}; see pretrain {name} --help")
    return name, values, bindings


def _with_action(arguments: Sequence[str]) -> list[str]:
    """The arguments with the two words of a command such as `scaling fit` as one."""
    two = " ".join(arguments[:2])
    return [two, *arguments[2:]] if two in COMMANDS else list(arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line and returns the exit code."""
    arguments = _with_action(arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in COMMANDS and any(word in ("--help", "-h") for word in arguments[1:]):
        print(command_usage(arguments[0]))
        return 0
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int | None:
    name, values, bindings = parse(arguments)
    if not lifeline.attach() and getattr(values, "max_restarts", 0):
        return Supervisor(arguments, values.max_restarts, values.workdir).run()
    _quiet_libraries()
    COMMANDS[name].run(values, bindings)


def _quiet_libraries() -> None:
    """Keeps the libraries' chatter off the terminal; their errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    flags.FLAGS(["pretrain"])  # libraries that define absl flags of their own read the defaults


def run() -> None:
    """Entry point of the `pretrain` script; ends in silence when nobody reads its output any more (`| head`)."""
    sys.stderr = Forgiving(sys.stderr)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        code = 128 + signal.SIGPIPE
    sys.exit(code)
