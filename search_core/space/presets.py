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

_Options = Mapping[str, tuple[str, type[int] | type[float]]]


@dataclass(frozen=True)
class _Family:
    """A space and its variants.

    Attributes:
        build: the space with its defaults; keyword arguments make a variant.
        options: letter in a variant's name -> argument of `build` and its type. In
            ``nasbench201_c8_n1`` the letters are c and n.
    """

    build: Callable[..., SearchSpace]
    options: _Options = field(default_factory=dict)


_SHAPE: _Options = {
    "i": ("in_channels", int),
    "r": ("resolution_px", int),
    "k": ("n_classes", int),
}
"""Options of the families that take any square images, of any number of classes."""

_FAMILIES = {
    "micro": _Family(micro, _SHAPE),
    "nasbench201": _Family(
        nasbench201,
        {
            "c": ("channels", int),
            "n": ("cells_per_stage", int),
            "s": ("stem_stride", int),
            **_SHAPE,
        },
    ),
    "proxyless_cifar_mb": _Family(proxyless_cifar_mb, _SHAPE),
    "proxyless_cifar_tree": _Family(
        proxyless_cifar_tree, {"b": ("blocks_per_group", int), "f": ("bottleneck", int)}
    ),
    "proxyless_imagenet": _Family(proxyless_imagenet, {"w": ("width", float)}),
    "spos_cifar": _Family(spos_cifar, _SHAPE),
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
    family, arguments = _read(name)
    space = family.build(**arguments)
    if space.name != name:
        raise UnknownSpaceError(f"{name!r} is written {space.name!r}")
    return space


@lru_cache(maxsize=64)
def fitted_space(name: str, channels: int, resolution_px: int, n_classes: int) -> SearchSpace:
    """The space of that name for square images of this shape and so many classes.

    ``micro`` for 3 x 32 x 32 images of seven classes is ``micro_i3_r32_k7``: a space of its own,
    which has to be measured.

    Raises:
        UnknownSpaceError: as `get_space`, or its family takes no other images than it has.
    """
    space = get_space(name)
    shape = {"in_channels": channels, "resolution_px": resolution_px, "n_classes": n_classes}
    if all(getattr(space, argument) == value for argument, value in shape.items()):
        return space
    family, arguments = _read(name)
    if not family.options.items() >= _SHAPE.items():
        raise UnknownSpaceError(
            f"{name} takes {space.in_channels} x {space.resolution_px} x {space.resolution_px} "
            f"images of {space.n_classes} classes and has no variant for others"
        )
    return family.build(**{**arguments, **shape})


def is_listed(name: str) -> bool:
    """Whether it names a listed space, or one of these for other images (`fitted_space`)."""
    try:
        family, arguments = _read(name)
    except UnknownSpaceError:
        return False
    shape = {argument for argument, _ in _SHAPE.values()}
    kept = {argument: value for argument, value in arguments.items() if argument not in shape}
    return any(_read(listed) == (family, kept) for listed in space_names())


def _read(name: str) -> tuple[_Family, dict[str, int | float]]:
    """The family of a space and the arguments that make the variant."""
    if name in _FAMILIES:
        return _FAMILIES[name], {}
    for known, family in _FAMILIES.items():
        if family.options and name.startswith(f"{known}_"):
            return family, _arguments(name.removeprefix(f"{known}_"), known, family.options)
    raise UnknownSpaceError(
        f"no search space is called {name!r}; known: {', '.join(space_names())}"
    )


def _arguments(words: str, known: str, options: _Options) -> dict[str, int | float]:
    accepted = ", ".join(f"_{letter} {argument}" for letter, (argument, _) in options.items())
    arguments: dict[str, int | float] = {}
    for word in words.split("_"):
        match = _OPTION.fullmatch(word)
        if match is None or match[1] not in options:
            raise UnknownSpaceError(f"{known} has no variant {word!r}; it takes {accepted}")
        argument, kind = options[match[1]]
        if float(match[2]) <= 0 or (kind is int and "." in match[2]):
            raise UnknownSpaceError(f"{argument} of {known} cannot be {match[2]}")
        arguments[argument] = kind(match[2])
    return arguments
