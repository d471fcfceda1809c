"""The search spaces known by name, and how variants of them are named."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from search_core.errors import UnknownSpaceError
from search_core.space.micro import micro
from search_core.space.nasbench201 import nasbench201
from search_core.space.proxyless import proxyless_cifar_mb, proxyless_imagenet
from search_core.space.proxyless_tree import proxyless_cifar_tree
from search_core.space.space import SearchSpace
from search_core.space.spos import spos_cifar, spos_imagenet


@dataclass(frozen=True)
class _Family:
    """A space and its variants.

    Attributes:
        build: the space with its defaults; keyword arguments make a variant.
        options: letter in a variant's name -> argument of `build` and its type. In
            ``nasbench201_c8_n1`` the letters are c and n.
    """

    build: Callable[..., SearchSpace]
    options: Mapping[str, tuple[str, type[int] | type[float]]] = field(default_factory=dict)


_FAMILIES = {
    "micro": _Family(micro),
    "nasbench201": _Family(
        nasbench201,
        {
            "c": ("channels", int),
            "n": ("cells_per_stage", int),
            "s": ("stem_stride", int),
            "r": ("resolution_px", int),
        },
    ),
    "proxyless_cifar_mb": _Family(proxyless_cifar_mb),
    "proxyless_cifar_tree": _Family(
        proxyless_cifar_tree, {"b": ("blocks_per_group", int), "f": ("bottleneck", int)}
    ),
    "proxyless_imagenet": _Family(proxyless_imagenet, {"w": ("width", float)}),
    "spos_cifar": _Family(spos_cifar),
    "spos_imagenet": _Family(spos_imagenet),
}

_LISTED_VARIANTS = ("nasbench201_n1", "nasbench201_n1_s2")
"""One cell a stage, at full and at half resolution: small enough to search in on a CPU."""

_OPTION = re.compile(r"([a-z])(\d{1,4}(?:\.\d{1,4})?)", re.ASCII)


def space_names() -> tuple[str, ...]:
    """Every listed name, sorted; of the variants only a few."""
    return tuple(sorted((*_FAMILIES, *_LISTED_VARIANTS)))


@lru_cache(maxsize=64)
def get_space(name: str) -> SearchSpace:
    """The space of that name, or the variant: ``proxyless_imagenet_w0.75``.

    Raises:
        UnknownSpaceError: listing the known names, or what the space's variants accept.
    """
    if name in _FAMILIES:
        return _FAMILIES[name].build()
    for known, family in _FAMILIES.items():
        if family.options and name.startswith(f"{known}_"):
            return _variant(name, known, family)
    raise UnknownSpaceError(
        f"no search space is called {name!r}; known: {', '.join(space_names())}"
    )


def _variant(name: str, known: str, family: _Family) -> SearchSpace:
    options = family.options
    accepted = ", ".join(f"_{letter} {argument}" for letter, (argument, _) in options.items())
    arguments: dict[str, int | float] = {}
    for word in name.removeprefix(f"{known}_").split("_"):
        match = _OPTION.fullmatch(word)
        if match is None or match[1] not in options:
            raise UnknownSpaceError(f"{known} has no variant {word!r}; it takes {accepted}")
        argument, kind = options[match[1]]
        if float(match[2]) <= 0 or (kind is int and "." in match[2]):
            raise UnknownSpaceError(f"{argument} of {known} cannot be {match[2]}")
        arguments[argument] = kind(match[2])
    space = family.build(**arguments)
    if space.name != name:
        raise UnknownSpaceError(f"{name!r} is written {space.name!r}")
    return space
