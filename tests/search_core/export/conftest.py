"""One network of each family, with weights and statistics that no format gets right by luck."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from search_core.export import (
    onnx_bytes,
    python_source,
    safetensors_bytes,
    torch_export_bytes,
)
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace

ARCHITECTURES = {
    "micro": "k3e1c24 k5e3c24 k3e6c40 k5e1c40 k3e3c80 k3e6c80",
    "proxyless_cifar_mb": (
        "k3e3c24 Z Z Z k5e3c40 k3e3c40 Z Z k7e3c80 Z Z Z k3e6c96 Z Z Z "
        "k3e3c192 Z k5e3c192 Z k3e3c320"
    ),
    "spos_cifar": "0-1-2-3-3-0-0-0-2-0-0-0-0-3-0-0-1-0-0-0",
    "nasbench201": (
        "|none~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    ),
}


def enliven(network, seed=1):
    """Every BatchNorm gets its own statistics, scales and shifts."""
    generator = stream(seed, "statistics")
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 1.5),
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


def space_of(family):
    return (
        nasbench201(channels=4, cells_per_stage=1) if family == "nasbench201" else get_space(family)
    )


@dataclass(frozen=True)
class Exported:
    """A network, the images it is asked about, and every file of it by name."""

    space: SearchSpace
    architecture: Architecture
    network: Network
    images: torch.Tensor
    files: dict[str, bytes | str]


@pytest.fixture(scope="session")
def every_family(images_of):
    """Family -> its exported network."""
    exported = {}
    for family, text in ARCHITECTURES.items():
        space = space_of(family)
        architecture = space.parse(text)
        network = enliven(Network.initialised(space.graph(architecture), stream(1, "weights")))
        files = {
            "model.onnx": onnx_bytes(network),
            "weights.safetensors": safetensors_bytes(network),
            "network.pt2": torch_export_bytes(network),
            "network.py": python_source(network),
        }
        exported[family] = Exported(space, architecture, network, images_of(space), files)
    return exported


@pytest.fixture(scope="session", params=ARCHITECTURES)
def exported(request, every_family):
    """The exported network of one family."""
    return every_family[request.param]


@pytest.fixture(scope="session")
def network_of():
    """The network of these choices."""

    def build(space, choices, bn_eps=1e-5):
        graph = space.graph(space.architecture(choices))
        return enliven(Network.initialised(graph, stream(1, "weights"), bn_eps))

    return build


@pytest.fixture(scope="session")
def images_of():
    """Three random images for a space."""

    def draw(space):
        shape = (3, space.in_channels, space.resolution_px, space.resolution_px)
        return torch.randn(shape, generator=stream(2, "images"))

    return draw
