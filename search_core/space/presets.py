"""The search spaces known by name."""

from collections.abc import Callable
from functools import cache

from search_core.errors import UnknownSpaceError
from search_core.space.micro import micro
from search_core.space.nasbench201 import nasbench201
from search_core.space.proxyless import proxyless_cifar_mb, proxyless_imagenet
from search_core.space.space import SearchSpace
from search_core.space.spos import spos_cifar, spos_imagenet

_BUILDERS: dict[str, Callable[[], SearchSpace]] = {
    "micro": micro,
    "nasbench201": nasbench201,
    "proxyless_cifar_mb": proxyless_cifar_mb,
    "proxyless_imagenet": proxyless_imagenet,
    "spos_cifar": spos_cifar,
    "spos_imagenet": spos_imagenet,
}


def space_names() -> tuple[str, ...]:
    """Every known name, sorted."""
    return tuple(sorted(_BUILDERS))


@cache
def get_space(name: str) -> SearchSpace:
    """The space of that name.

    Raises:
        UnknownSpaceError: listing the known names.
    """
    if name not in _BUILDERS:
        raise UnknownSpaceError(
            f"no search space is called {name!r}; known: {', '.join(space_names())}"
        )
    return _BUILDERS[name]()
