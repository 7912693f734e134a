"""gin configurations: read files and command-line bindings, refuse typing errors, compare and write back what was used.

A gin file is code: it chooses which configurables run and may import modules. Only use files you trust.
"""

import difflib
import inspect
import os
import re
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path as LocalPath
from typing import Any

import gin
from gin.config import ConfigurableReference

from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path, is_remote

# gin files are found from the current folder, from a checkout's root, and inside an installed package.
_PACKAGE = LocalPath(__file__).resolve().parents[1]
for _folder in (_PACKAGE.parent, _PACKAGE):
    gin.add_config_file_search_path(os.fspath(_folder))
# Local and remote files only: the reader for files in Python packages logs an error for each path it does not know.
gin.config._FILE_READERS[:] = [(open, os.path.isfile), (lambda path: Path(path).open("r"), is_remote)]

_captured: dict[tuple[str, str], dict[str, Any]] = {}


@gin.config.register_finalize_hook
def _capture(config: dict) -> None:
    _captured.clear()
    _captured.update(config)


def load(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
    """Replaces the current configuration by `files` in order, then `bindings` ("NAME=VALUE") on top.

    Raises:
        UserError: a file is missing, a name is unknown, or a binding names a macro that no file declares.
    """
    gin.clear_config()
    with gin.unlock_config():
        for file in files:
            _check_exists(file)
            _parse(lambda file=file: gin.parse_config_file(file), file)
        for binding in bindings:
            _parse_binding(binding)
        _parse(gin.finalize, ", ".join(files) or "the bindings")


def declared_macros() -> list[str]:
    """Names of the macros that the files read so far declare."""
    config = gin.config_str()
    names = (line.partition(" = ")[0].strip() for line in config.splitlines())
    return [name for name in names if name.isidentifier()]


def text() -> str:
    """The current configuration as a gin file that `load` reads back."""
    return gin.config_str(max_line_length=110)


def operative_text() -> str:
    """As `text`, with the defaults of everything that was called."""
    return gin.operative_config_str(max_line_length=110)


def resolved() -> dict[str, str]:
    """Every bound parameter with its macros filled in: `{"Training.steps": "1000", ...}`, without the macros."""
    values = {}
    for (scope, selector), parameters in _captured.items():
        if selector == "gin.macro":
            continue
        name = f"{scope}/{selector.rpartition('.')[2]}" if scope else selector.rpartition(".")[2]
        for parameter, value in parameters.items():
            values[f"{name}.{parameter}"] = repr(_resolve(value))
    return dict(sorted(values.items()))


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Names whose values differ between two results of `resolved`; what is not bound has its default."""
    return sorted(name for name in old.keys() | new.keys() if _value(old, name) != _value(new, name))


def _value(values: dict[str, str], name: str) -> str | None:
    """A bound value, or its default, as `repr`; None where there is neither."""
    if name in values:
        return values[name]
    configurable, _, parameter = name.rpartition("/")[2].rpartition(".")
    try:
        default = inspect.signature(gin.get_configurable(configurable)).parameters[parameter].default
    except (ValueError, KeyError):  # of another version of this package
        return None
    return None if default is inspect.Parameter.empty else repr(default)


def check_same_run(old: dict[str, str], may_change: tuple[str, ...], workdir: str) -> None:
    """Refuses to go on with a run whose numbers would come out differently.

    Args:
        old: what `resolved` gave when the run began.
        may_change: beginnings of names that may differ; so may a larger Training.steps.
        workdir: of the run, for the message.
    """
    new = resolved()
    for name in differences(old, new):
        longer = name == "Training.steps" and _number(new.get(name)) > _number(old.get(name))
        if not longer and not name.startswith(may_change):
            raise UserError(
                f"{workdir} holds a run with {name} = {old.get(name, 'its default')}, now it is "
                f"{new.get(name, 'its default')}: use another --workdir, or leave it as it was"
            )


def _number(text: str | None) -> float:
    """A number as `resolved` writes it; 0 for the default, which is what a changed file gives as well."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _resolve(value: Any) -> Any:
    if isinstance(value, ConfigurableReference):
        if value.selector == "gin.macro":
            macro = value.config_key[0]
            return _resolve(_captured[(macro, "gin.macro")]["value"])
        return _Verbatim(repr(value))
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in sorted(value.items())}  # as `text` writes it, and reads it back
    if isinstance(value, list | tuple):
        return type(value)(_resolve(item) for item in value)
    return value


class _Verbatim(str):
    """A reference such as `@Causal()`, written without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _check_exists(file: str) -> None:
    if is_remote(file):
        check(Path(file).exists(), f"no such gin file: {file}")
        return
    folders = [Path("."), Path(_PACKAGE.parent), Path(_PACKAGE)]
    if not any((folder / file).exists() for folder in folders):
        raise UserError(f"no such gin file: {file} (looked in the current folder and in {_PACKAGE.parent})")


def _parse_binding(binding: str) -> None:
    name, equals, value = binding.partition("=")
    name = name.strip()
    if not equals or not value.strip():
        raise UserError(f"--gin.{binding}: write --gin.NAME=VALUE")
    if "." not in name and "/" not in name and name not in declared_macros():
        raise UserError(f"--gin.{name}: no gin file declares this macro{_similar(name, declared_macros())}")
    _parse(lambda: gin.parse_config(f"{name} = {value}"), f"--gin.{binding}")


def _parse(action, where: str) -> None:
    """Runs a gin call and turns what it raises into one line."""
    try:
        action()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    except ImportError as error:
        raise UserError(f"{where}: cannot import {error.name or error}") from error
    except (SyntaxError, tokenize.TokenError) as error:
        line = f" line {error.lineno}" if getattr(error, "lineno", None) else ""
        hint = "; strings need quotes: --gin.NAME=\"'text'\"" if where.startswith("--gin.") else ""
        raise UserError(f"{where}:{line} is not gin syntax{hint}") from error
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        message = _first_line(error)
        unknown = re.search(r"No configurable matching (?:reference )?'?@?([\w./]+)", message)
        hint = _similar(unknown.group(1), _configurables()) if unknown else ""
        raise UserError(f"{where}: {message.partition(' in config string')[0].rstrip('.')}{hint}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _configurables() -> Iterable[str]:
    return [name.rpartition(".")[2] for name, _ in gin.config._REGISTRY.items()]  # gin has no public list of names


def _similar(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.rpartition("/")[2].partition(".")[0], sorted(set(known)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else "; see the names at the top of the run's gin file"
