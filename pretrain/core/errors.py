"""Errors for people: what is wrong, where, and what to do. `main` turns them into one line and an exit code."""


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
