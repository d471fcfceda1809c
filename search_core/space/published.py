"""Published networks by name, each written as the compact string of its space."""

from dataclasses import dataclass

from search_core.errors import ArchitectureSyntaxError
from search_core.space.graph import Graph
from search_core.space.presets import get_space
from search_core.space.proxyless import mbconv_network
from search_core.space.space import SearchSpace

_MBCONV_SPACE = "proxyless_imagenet"


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of a paper.

    Attributes:
        space: name of the space it belongs to.
        architecture: its compact string; a ProxylessNAS one has 22 tokens.
        stem_channels, mix_channels: what a ProxylessNAS string does not tell.
    """

    space: str
    architecture: str
    stem_channels: int = 32
    mix_channels: int = 1280

    def graph(self) -> Graph:
        """The network."""
        if self.space == _MBCONV_SPACE:
            widths = {"stem_channels": self.stem_channels, "mix_channels": self.mix_channels}
            return Graph.chain(mbconv_network(self.architecture, **widths))
        space = get_space(self.space)
        return space.graph(space.parse(self.architecture))


_NETWORKS = {
    "dsnas": PublishedNetwork("spos_imagenet", "0-0-3-0-3-2-0-0-3-3-2-3-3-3-2-0-0-3-3-0"),
    "mobilenet_v2": PublishedNetwork(
        _MBCONV_SPACE,
        "k3e1c16 k3e6c24 k3e6c24 Z Z k3e6c32 k3e6c32 k3e6c32 Z k3e6c64 k3e6c64 k3e6c64 k3e6c64 "
        "k3e6c96 k3e6c96 k3e6c96 Z k3e6c160 k3e6c160 k3e6c160 Z k3e6c320",
    ),
    "proxyless_cifar": PublishedNetwork(
        "proxyless_cifar_tree",
        "7mdi7m5d5577-aiaa3im7didd-7i3a5a3d3ad5-a55d3dd773i7-ai5dd57m7aim-7m7m35a7d3ii-"
        "dmim777753ii-dd5757m5aa37-7d5miimm3aad-5i3i373i5757-7a7535diadd3-5da533a577d3-"
        "mm737d3ma57i-37md7d5di373-dam3ddai5i5i-5id5aad55573-7555d3idm737-mdii3i7m57id-"
        "dm5aa75a73am-7di7i7dm37m5-mda3idmmm5ia-da73a33a7idd-dmma7i7ddiam-75m7mimiadm7-"
        "i5a5m5dd7adm-3iadddd3aaa3-d7m7immm555d-3773aim737mm-7577a333ida3-5iaia5a73aam-"
        "i3adi7ia7mid-7m5i7dm7dm77-37m3i353i35i-d7d3d73i3dmi-mii55a37aiad-7m75da737555-"
        "aaaada7i5iia-m7ia5iiiai7i-d37mi5ai3ima-77a5a3mia3mm-iia7i7ima5a7-di5im575d7id-"
        "mmiaamdai53i-77577ad73m7a-dadmd37didm5-adam3mdi7dai-mma7335daii3-5d7dimm735mi-"
        "773mdam5mm5m-m5iad3537377-i3a577i7773a-5m53ai55am5i-3md3mai7md33-773m5i5mm337",
    ),
    "proxyless_cpu": PublishedNetwork(
        _MBCONV_SPACE,
        "k3e1c24 k3e6c32 k3e3c32 k3e3c32 k3e3c32 k3e6c48 k3e3c48 k3e3c48 k5e3c48 k3e6c88 Z Z "
        "k3e3c88 k5e6c104 k3e3c104 k3e3c104 k3e3c104 k5e6c216 k5e3c216 k5e3c216 k3e3c216 k5e6c360",
        stem_channels=40,
        mix_channels=1432,
    ),
    "proxyless_gpu": PublishedNetwork(
        _MBCONV_SPACE,
        "k3e1c24 k5e3c32 Z Z Z k7e3c56 Z Z k3e3c56 k7e6c112 Z Z k5e3c112 k5e6c128 Z k3e3c128 "
        "k5e3c128 k7e6c256 k7e6c256 k7e6c256 k5e6c256 k7e6c432",
        stem_channels=40,
        mix_channels=1728,
    ),
    "proxyless_mobile": PublishedNetwork(
        _MBCONV_SPACE,
        "k3e1c16 k5e3c32 k3e3c32 Z Z k7e3c40 k3e3c40 k5e3c40 k5e3c40 k7e6c80 k5e3c80 k5e3c80 "
        "k5e3c80 k5e6c96 k5e3c96 k5e3c96 k5e3c96 k7e6c192 k7e6c192 k7e3c192 k7e3c192 k7e6c320",
    ),
    "proxyless_mobile_14": PublishedNetwork(
        _MBCONV_SPACE,
        "k3e1c24 k5e3c40 k3e3c40 Z Z k7e3c56 k3e3c56 k5e3c56 k5e3c56 k7e6c112 k5e3c112 k5e3c112 "
        "k5e3c112 k5e6c136 k5e3c136 k5e3c136 k5e3c136 k7e6c256 k7e6c256 k7e3c256 k7e3c256 k7e6c448",
        stem_channels=48,
        mix_channels=1792,
    ),
    "spos": PublishedNetwork("spos_imagenet", "0-1-2-2-1-1-2-1-3-3-0-3-0-3-0-0-2-2-2-1"),
}


def published_names(space: str) -> tuple[str, ...]:
    """The names of the published networks of the space called `space`."""
    return tuple(name for name in sorted(_NETWORKS) if _NETWORKS[name].space == space)


def published_network(name: str) -> Graph:
    """The published network of that name.

    Raises:
        ArchitectureSyntaxError: listing the known names.
    """
    if name not in _NETWORKS:
        raise ArchitectureSyntaxError(
            f"no published network is called {name!r}; known: {', '.join(sorted(_NETWORKS))}"
        )
    return _NETWORKS[name].graph()


def find_network(
    space: SearchSpace,
    text: str,
    *,
    stem_channels: int | None = None,
    mix_channels: int | None = None,
) -> tuple[str, Graph]:
    """The compact string and the network that `text` names in `space`.

    Args:
        text: a published name, the compact string of the space or, in `proxyless_imagenet`, 22
            tokens with channel counts of their own.
        stem_channels, mix_channels: for 22 tokens; where they are not given, those of the
            published network with this string, else the space's.

    Raises:
        ArchitectureSyntaxError: none of these; or widths where the string decides them.
    """
    widths = {"stem_channels": stem_channels, "mix_channels": mix_channels}
    given = {name: width for name, width in widths.items() if width is not None}
    known = {name: _NETWORKS[name] for name in published_names(space.name)}
    text = " ".join(text.split())
    for name, network in known.items():
        if text in (name, network.architecture) and not given:
            return network.architecture, network.graph()
    if space.name == _MBCONV_SPACE and len(text.split()) == len(space.slots) + 1:
        return text, PublishedNetwork(space.name, text, **given).graph()
    if given:
        raise ArchitectureSyntaxError(
            f"only a string of 22 tokens of {_MBCONV_SPACE} takes widths of stem and mix"
        )
    try:
        architecture = space.parse(text)
    except ArchitectureSyntaxError as error:
        if not known:
            raise
        raise ArchitectureSyntaxError(f"{error}; published: {', '.join(known)}") from error
    return space.format(architecture), space.graph(architecture)
