"""Trees of arrays by name: a nested dict of parameters seen as `{"blocks/attention/query/kernel": array}`."""

from collections.abc import Callable
from typing import Any

import jax


def name_of(path: tuple) -> str:
    """The slash-joined name of a jax key path."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by name, in tree order."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any, is_leaf=None) -> Any:
    """`jax.tree.map` whose function gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(name_of(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def size(tree: Any) -> int:
    """Number of elements in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
