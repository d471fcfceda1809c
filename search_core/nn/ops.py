"""Candidate operations: a `BlockSpec` becomes a module, without its shortcut."""

from collections import OrderedDict

import torch
from torch import nn

from search_core.space.blocks import BlockKind, BlockSpec

BN_EPS_SEARCH = 1e-2
"""BatchNorm epsilon while DSNAS searches and in the child that inherits its weights.

A gated output that feeds a BatchNorm makes the loss nearly scale-invariant, so the DSNAS
signal vanishes as epsilon goes to 0; the authors' code uses 1e-2 for the supernet.
"""

BN_EPS_TRAIN = 1e-5
"""BatchNorm epsilon of a network that is trained from scratch."""


class ConvBatchNorm(nn.Sequential):
    """Convolution, BatchNorm and, where asked for, ReLU6."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
        bn_eps: float,
    ) -> None:
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv=conv, bn=nn.BatchNorm2d(out_channels, eps=bn_eps)
        )
        if activation:
            parts["act"] = nn.ReLU6(inplace=True)
        super().__init__(parts)


class MBConv(nn.Sequential):
    """Inverted bottleneck: expand, depthwise, project; linear at the end (MobileNetV2)."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        hidden = spec.hidden_channels
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.expansion > 1:
            parts["expand"] = ConvBatchNorm(spec.in_channels, hidden, bn_eps=bn_eps)
        parts["depthwise"] = ConvBatchNorm(
            hidden, hidden, kernel=spec.kernel, stride=spec.stride, groups=hidden, bn_eps=bn_eps
        )
        parts["project"] = ConvBatchNorm(hidden, spec.out_channels, activation=False, bn_eps=bn_eps)
        super().__init__(parts)


class Zero(nn.Module):
    """The candidate that computes nothing; its layer is the shortcut alone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Zeros of the shape of `features`."""
        return torch.zeros_like(features)


class Classifier(nn.Sequential):
    """Global average pool and a linear layer with bias: (B, C, H, W) -> (B, n_classes)."""

    linear: nn.Linear

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(spec.in_channels, spec.out_channels),
            )
        )


def build_operation(spec: BlockSpec, bn_eps: float) -> nn.Module:
    """The operation of `spec`, freshly initialised; a shortcut is the layer's business."""
    match spec.kind:
        case BlockKind.CONV:
            return ConvBatchNorm(
                spec.in_channels,
                spec.out_channels,
                kernel=spec.kernel,
                stride=spec.stride,
                bn_eps=bn_eps,
            )
        case BlockKind.MBCONV:
            return MBConv(spec, bn_eps)
        case BlockKind.ZERO:
            return Zero()
        case BlockKind.CLASSIFIER:
            return Classifier(spec)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew: He fan-out for convolutions, uniform 1/sqrt(fan_in) for linear.

    The fan-out of a grouped convolution is not divided by its groups, as in the
    ProxylessNAS code.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
            part.reset_running_stats()
