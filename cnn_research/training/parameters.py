"""Parameters by their path: which decay, which are frozen, which learn faster.

A path is "conv1/kernel", and that of a batch statistic "norm1/mean". Patterns are searched for anywhere in it
(`re.search`): "conv1" is also in "conv10/kernel", "^conv1/" is not.
"""

import difflib
import re
from typing import Any

import jax
import jax.numpy as jnp

from cnn_research.errors import UserError
from cnn_research.validation import parse_multiplier


def kernels(params: Any) -> Any:
    """Marks what weight decay is meant for: kernels, not biases and not the scales of normalisation (vectors)."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


# The layers whose units are the classes: of every network the last one, and those of GoogLeNet's auxiliary heads.
HEADS = re.compile(r"^(output|aux\d+/fc2)/")


def hidden_kernels(params: Any) -> Any:
    """Marks the kernels of all layers but those whose units are the classes."""
    return _map_paths(lambda path, p: jnp.ndim(p) > 1 and not HEADS.match(path), params)


def is_frozen(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of `config.optimizer.freeze` is found in the path of a parameter or a batch statistic."""
    return any(re.search(pattern, path) for pattern in patterns)


def frozen(tree: Any, patterns: tuple[str, ...]) -> Any:
    """Marks what is frozen: parameters or batch statistics -> a tree of bool."""
    return _map_paths(lambda path, _: is_frozen(path, patterns), tree)


def multipliers(tree: Any, texts: tuple[str, ...]) -> Any:
    """Returns the learning-rate multiplier of each parameter: that of the first text whose pattern is found, or 1.

    Args:
        tree: parameters.
        texts: `config.optimizer.learning_rate_multipliers`.

    Returns:
        A tree of float.
    """
    parsed = [parse_multiplier(text) for text in texts]
    return _map_paths(lambda path, _: next((factor for pattern, factor in parsed if pattern.search(path)), 1.0), tree)


def check_patterns(params: Any, freeze: tuple[str, ...], learning_rate_multipliers: tuple[str, ...]) -> None:
    """Makes sure that patterns say something about a network.

    Raises:
        UserError: a pattern is found in no path, or nothing is left to train.
    """
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = [("freeze", pattern) for pattern in freeze]
    patterns += [("learning_rate_multipliers", parse_multiplier(text)[0].pattern) for text in learning_rate_multipliers]
    for field, pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            where = _nearest(pattern, paths)
            raise UserError(f"config.optimizer.{field}: {pattern!r} is found in no parameter's path; {where}")
    if all(jax.tree.leaves(frozen(params, freeze))):
        raise UserError(f"config.optimizer.freeze={freeze!r} leaves no parameter to train")


def _nearest(pattern: str, paths: list[str]) -> str:
    """The paths and their beginnings that are most like a pattern, else the outermost modules."""
    beginnings = [path.rsplit("/", depth)[0] for path in paths for depth in range(path.count("/") + 1)]
    choices = list(dict.fromkeys(beginnings))
    plain = re.sub(r"[^\w/]", "", pattern)
    near = difflib.get_close_matches(plain, choices, n=3)
    return f"near are {', '.join(near)}" if near else f"there are {', '.join(c for c in choices if '/' not in c)}"


def _map_paths(function, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
