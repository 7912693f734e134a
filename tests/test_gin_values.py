"""A value of a wrong type in a gin file is one line, whatever is configured; no traceback from where it is used."""

import ast
import dataclasses
import importlib
import pkgutil
from pathlib import Path

import pytest

import pretrain
from pretrain.core.errors import UserError
from pretrain.core.fields import check_fields


def configurable() -> list[type]:
    """The dataclasses of the package that gin files bind."""
    found = []
    for info in pkgutil.walk_packages(pretrain.__path__, "pretrain."):
        module = importlib.import_module(info.name)
        for node in ast.parse(Path(module.__file__).read_text()).body:
            is_class = isinstance(node, ast.ClassDef)
            if is_class and any("gin.configurable" in ast.unparse(each) for each in node.decorator_list):
                found.append(getattr(module, node.name))
    return [each for each in found if dataclasses.is_dataclass(each)]


def test_a_value_of_a_wrong_type_is_told():
    kinds = configurable()
    assert len(kinds) > 80
    for kind in kinds:
        fields = [field for field in dataclasses.fields(kind) if field.init]
        required = {f.name: "a file" for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        for field in fields:
            with pytest.raises(UserError, match=rf"^{kind.__name__}\.{field.name} must be "):
                kind(**{**required, field.name: object()})


def test_items_of_a_tuple_may_each_have_a_type_of_their_own():
    @dataclasses.dataclass
    class Limits:
        ngrams: tuple[tuple[int, float], ...]

        __post_init__ = check_fields

    assert Limits([(2, 0.5), [3, 1]]).ngrams == [(2, 0.5), [3, 1]]
    for wrong in ([(2.5, 0.5)], [(2, 0.5, 1)], [2, 0.5], [(2,)], "ab"):
        with pytest.raises(UserError, match=r"a list, each item 2 items: a whole number, a number; got"):
            Limits(wrong)
