"""Compiles functions of a network once for each network."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[Function], Function]:
    """A decorator that compiles a function whose first argument is a Flax module.

    Equal modules share what is compiled, within `jax.jit` too. Flax can't compare a module that has a list or a
    dictionary for a field: with such a one the function runs operation by operation, unless the caller compiles it.

    Args:
        *static: names of further arguments that are no arrays, such as the path of a layer.
    """

    def decorate(function: Function) -> Function:
        first = next(iter(inspect.signature(function).parameters))
        jitted = jax.jit(function, static_argnames=(first, *static))

        @functools.wraps(function)
        def call(model: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                hash(model)
            except TypeError:
                return function(model, *args, **kwargs)
            return jitted(model, *args, **kwargs)

        return call

    return decorate
