"""Values of a config checked against its annotations: a wrong type in a gin file is one line, not a traceback later."""

import collections.abc
import dataclasses
import types
import typing
from typing import Any, Literal

from pretrain.core.errors import check


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass that is annotated with plain types.

    Understands int, float (whole numbers too, not NaN), str, bool, None, Literal, unions, and sequences and mappings
    of these, tuples with a type for each place, and classes; any other annotation accepts everything.

    Raises:
        UserError: a value does not fit its annotation.
    """
    annotations = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, annotation = getattr(config, field.name), annotations[field.name]
        check(
            _fits(value, annotation),
            f"{type(config).__name__}.{field.name} must be {_describe(annotation)}; got {value!r}",
        )


def _fits(value: Any, annotation: Any) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return value in inner and isinstance(value, type(inner[0]))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin in (tuple, list, collections.abc.Sequence):
        if not isinstance(value, list | tuple):
            return False
        if _has_places(origin, inner):
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(item, inner[0]) for item in value)
    if origin in (dict, collections.abc.Mapping):
        is_mapping = isinstance(value, collections.abc.Mapping)
        return is_mapping and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(annotation, type) or isinstance(value, annotation)


def _has_places(origin: Any, inner: tuple) -> bool:
    """Whether each item has a type of its own: `tuple[int, float]`, not `tuple[int, ...]`."""
    return origin is tuple and Ellipsis not in inner


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string in quotes",
    bool: "True or False",
    types.NoneType: "None",
}


def _describe(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(each) for each in inner)
    if _has_places(origin, inner):
        return f"{len(inner)} items: {', '.join(map(_describe, inner))}"
    if origin in (tuple, list, collections.abc.Sequence):
        return f"a list, each item {_describe(inner[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"a dictionary of {_describe(inner[0])} to {_describe(inner[1])}"
    return _NAMES.get(annotation, f"@{getattr(annotation, '__name__', annotation)}()")
