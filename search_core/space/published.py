"""Published networks by name, as chains of blocks."""

from collections.abc import Callable
from functools import partial

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockSpec
from search_core.space.proxyless import mbconv_network, mobilenet_v2

_PROXYLESS_MOBILE = (
    "k3e1c16 k5e3c32 k3e3c32 Z Z k7e3c40 k3e3c40 k5e3c40 k5e3c40 k7e6c80 k5e3c80 k5e3c80 "
    "k5e3c80 k5e6c96 k5e3c96 k5e3c96 k5e3c96 k7e6c192 k7e6c192 k7e3c192 k7e3c192 k7e6c320"
)
_PROXYLESS_CPU = (
    "k3e1c24 k3e6c32 k3e3c32 k3e3c32 k3e3c32 k3e6c48 k3e3c48 k3e3c48 k5e3c48 k3e6c88 Z Z "
    "k3e3c88 k5e6c104 k3e3c104 k3e3c104 k3e3c104 k5e6c216 k5e3c216 k5e3c216 k3e3c216 k5e6c360"
)
_PROXYLESS_GPU = (
    "k3e1c24 k5e3c32 Z Z Z k7e3c56 Z Z k3e3c56 k7e6c112 Z Z k5e3c112 k5e6c128 Z k3e3c128 "
    "k5e3c128 k7e6c256 k7e6c256 k7e6c256 k5e6c256 k7e6c432"
)
_PROXYLESS_MOBILE_14 = (
    "k3e1c24 k5e3c40 k3e3c40 Z Z k7e3c56 k3e3c56 k5e3c56 k5e3c56 k7e6c112 k5e3c112 k5e3c112 "
    "k5e3c112 k5e6c136 k5e3c136 k5e3c136 k5e3c136 k7e6c256 k7e6c256 k7e3c256 k7e3c256 k7e6c448"
)

_NETWORKS: dict[str, Callable[[], tuple[BlockSpec, ...]]] = {
    "mobilenet_v2": mobilenet_v2,
    "proxyless_cpu": partial(mbconv_network, _PROXYLESS_CPU, stem_channels=40, mix_channels=1432),
    "proxyless_gpu": partial(mbconv_network, _PROXYLESS_GPU, stem_channels=40, mix_channels=1728),
    "proxyless_mobile": partial(mbconv_network, _PROXYLESS_MOBILE),
    "proxyless_mobile_14": partial(
        mbconv_network, _PROXYLESS_MOBILE_14, stem_channels=48, mix_channels=1792
    ),
}


def published_network(name: str) -> tuple[BlockSpec, ...]:
    """The blocks of a published network.

    Raises:
        ArchitectureSyntaxError: listing the known names.
    """
    if name not in _NETWORKS:
        raise ArchitectureSyntaxError(
            f"no published network is called {name!r}; known: {', '.join(sorted(_NETWORKS))}"
        )
    return _NETWORKS[name]()
