"""The platform that functions are traced for: the one jax runs on, or an absent one when compiling ahead of time.

A model chooses its kernels by platform ("cpu", "gpu", "tpu"). `with traced_for("tpu"):` around building and tracing it
makes the choices of a TPU on a machine that has none.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform's name, as `jax.default_backend` gives it."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Makes `platform()` answer `name` inside."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)
