"""A trained network as files: safetensors weights, one ONNX model, one torch.export program."""

import copy
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from search_core.nn.network import Network
from search_core.onnx_graph import build_model


def safetensors_bytes(network: Network) -> bytes:
    """The state dictionary of `network` in safetensors form."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def onnx_bytes(network: Network, *, batch: int = 1) -> bytes:
    """`network` in evaluation mode as one ONNX file of a fixed batch, BatchNorm folded."""
    return build_model(network.graph, folded_weights(network), batch=batch)


def torch_export_bytes(network: Network) -> bytes:
    """`network` in evaluation mode as a ``.pt2`` file for any batch size.

    It is read by `torch.export.load` and needs nothing of this package. Scores may differ in
    their last bits: the program's weights are in torch's default layout.
    """
    plain = copy.deepcopy(network).cpu().eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    first = network.blocks[0]
    images = torch.zeros(2, first.in_channels, first.resolution_px, first.resolution_px)
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the directories of this machine
    file = BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def folded_weights(network: Network) -> dict[str, NDArray[np.float32]]:
    """The weights that `search_core.onnx_graph.build_model` asks for.

    With running statistics mean and var, scale gamma and shift beta, a convolution W
    becomes W gamma / sqrt(var + eps) with bias beta - mean gamma / sqrt(var + eps).
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for index, layer in enumerate(network.layers):
        modules = dict(layer.named_modules())
        norms = {name for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
        for name, module in modules.items():
            prefix = f"{index}.{name}".rstrip(".")
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach().double()  # (out, in / groups, K, K)
                shift = torch.zeros(len(weight), dtype=torch.float64)
                norm = name.removesuffix("conv") + "bn" if name.endswith("conv") else ""
                if norm in norms:
                    scale, shift = _scale_and_shift(modules[norm])
                    weight = weight * scale.view(-1, 1, 1, 1)
                    norms.discard(norm)
                prefix = prefix.removesuffix("conv").rstrip(".")
                weights |= _pair(prefix, weight, shift)
            elif isinstance(module, nn.Linear):
                bias = module.bias if module.bias is not None else torch.zeros(module.out_features)
                weights |= _pair(prefix, module.weight, bias)
        for name in norms:  # what follows no convolution
            weights |= _pair(f"{index}.{name}".rstrip("."), *_scale_and_shift(modules[name]))
    return weights


def _pair(prefix: str, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    named = {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
    return {name: np.array(t.detach().cpu().numpy(), np.float32) for name, t in named.items()}


@torch.no_grad()
def _scale_and_shift(bn: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # (C,)
    return scale, bn.bias.double() - bn.running_mean.double() * scale
