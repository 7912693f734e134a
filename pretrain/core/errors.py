"""Errors for people: what is wrong, where, and what to do. `exit_code` turns them into one line and an exit code."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """The request cannot be met as asked: a typing error, a missing file, a value out of range. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The request was fine and the work failed: unreadable input, a damaged cache, a diverged run. Exit code 1.

    `everywhere` says that all processes of a run raise it at the same point, so that none needs to be told.
    """

    exit_code = 1
    everywhere = False


def check(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def exit_code(work: Callable[[], int | None], name: str = "pretrain") -> int:
    """What `work` returns, 0 for None; of an error for people its exit code, after one line that begins with `name`."""
    try:
        return work() or 0
    except UserError as error:  # gin adds lines about where it was called from
        print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return error.exit_code
    except RunError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
