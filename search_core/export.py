"""A trained network as files: safetensors weights and one self-contained ONNX model."""

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from search_core.nn.network import Network
from search_core.nn.ops import Classifier, ConvBatchNorm
from search_core.onnx_graph import build_model


def safetensors_bytes(network: Network) -> bytes:
    """The state dictionary of `network` in safetensors form."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def onnx_bytes(network: Network) -> bytes:
    """`network` in evaluation mode as one ONNX file of batch 1, BatchNorm folded."""
    return build_model(network.blocks, folded_weights(network))


def folded_weights(network: Network) -> dict[str, NDArray[np.float32]]:
    """The weights that `search_core.onnx_graph.build_model` asks for.

    With running statistics mean and var, scale gamma and shift beta, a convolution W
    becomes W gamma / sqrt(var + eps) with bias beta - mean gamma / sqrt(var + eps).
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for index, layer in enumerate(network.layers):
        for part, module in layer.named_modules():
            prefix = f"{index}.{part}" if part else str(index)
            if isinstance(module, ConvBatchNorm):
                weight, bias = _fold(module)
                weights[f"{prefix}.weight"], weights[f"{prefix}.bias"] = weight, bias
        if isinstance(layer, Classifier):
            weights[f"{index}.linear.weight"] = layer.linear.weight.detach().numpy()
            weights[f"{index}.linear.bias"] = layer.linear.bias.detach().numpy()
    return weights


def _fold(module: ConvBatchNorm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    bn: nn.BatchNorm2d = module.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    with torch.no_grad():
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # (C_out,)
        weight = module.conv.weight.double() * scale.view(-1, 1, 1, 1)
        bias = bn.bias.double() - bn.running_mean.double() * scale
    return weight.float().contiguous().numpy(), bias.float().numpy()


@torch.no_grad()
def onnx_parity(network: Network, model: bytes, images: torch.Tensor) -> float:
    """Largest absolute difference between torch's and ONNX Runtime's scores on `images`.

    Args:
        images: (N, C, H, W) float32, normalised; run one at a time.
    """
    import onnxruntime

    network.eval()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    worst = 0.0
    for image in torch.split(images, 1):
        expected = network(image).numpy()
        got = session.run(None, {"input": image.contiguous().numpy()})[0]
        worst = max(worst, float(np.abs(got - expected).max()))
    return worst
