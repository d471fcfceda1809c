"""Candidate operations: a `BlockSpec` becomes a module, without its shortcut.

An operation whose output is proportional to some of its parameters, taken together, names
them in `output_parameters`: the scale and shift of an affine BatchNorm at its end, or the
weight of a convolution there; a ReLU behind them and channels joined to them change nothing.
They tell the gradient of a gate on the output: see `search_core.nn.gates`.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

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
    """Convolution, BatchNorm and, where asked for, an activation."""

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
        activation: type[nn.Module] | None = None,
        bn_eps: float,
    ) -> None:
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv=conv, bn=nn.BatchNorm2d(out_channels, eps=bn_eps)
        )
        if activation is not None:
            parts["act"] = activation(inplace=True)
        super().__init__(parts)

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module; a ReLU6 also clips, so that nothing can be told through it."""
        clipped = isinstance(getattr(self, "act", None), nn.ReLU6)
        return () if clipped else (self.bn.weight, self.bn.bias)


class ReluConv(nn.Module):
    """ReLU, convolution, BatchNorm: NAS-Bench-201's ``nor_conv``."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, bn_eps: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=bn_eps)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        normed: torch.Tensor = self.bn(self.conv(torch.relu(features)))
        return normed

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module."""
        return self.bn.weight, self.bn.bias


class MBConv(nn.Sequential):
    """Inverted bottleneck: expand, depthwise, project; linear at the end (MobileNetV2)."""

    project: ConvBatchNorm

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        expansion: int,
        stride: int,
        bn_eps: float,
    ) -> None:
        hidden = in_channels * expansion
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            parts["expand"] = ConvBatchNorm(in_channels, hidden, activation=nn.ReLU6, bn_eps=bn_eps)
        parts["depthwise"] = ConvBatchNorm(
            hidden,
            hidden,
            kernel=kernel,
            stride=stride,
            groups=hidden,
            activation=nn.ReLU6,
            bn_eps=bn_eps,
        )
        parts["project"] = ConvBatchNorm(hidden, out_channels, bn_eps=bn_eps)
        super().__init__(parts)

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module."""
        return self.project.output_parameters


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: even channels pass, odd ones go through the branch, then both join.

    With stride 2 both halves see every channel, and the passing one is pooled by a strided
    depthwise convolution. The branch is ShuffleNetV2's own or, for `xception`, three
    depthwise-separable convolutions (SPOS, Guo et al. 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        xception: bool,
        bn_eps: float,
    ) -> None:
        super().__init__()
        self.splits = stride == 1
        half = in_channels // 2 if self.splits else in_channels
        hidden, grown = out_channels // 2, out_channels - half

        def depthwise(channels: int, stride: int = 1) -> ConvBatchNorm:
            return ConvBatchNorm(
                channels, channels, kernel=kernel, stride=stride, groups=channels, bn_eps=bn_eps
            )

        def pointwise(channels_in: int, channels_out: int) -> ConvBatchNorm:
            return ConvBatchNorm(channels_in, channels_out, activation=nn.ReLU, bn_eps=bn_eps)

        if not self.splits:
            self.pass_depthwise = depthwise(half, stride)
            self.pass_project = pointwise(half, half)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if xception:
            parts["depthwise1"] = depthwise(half, stride)
            parts["pointwise1"] = pointwise(half, hidden)
            parts["depthwise2"] = depthwise(hidden)
            parts["pointwise2"] = pointwise(hidden, hidden)
            parts["depthwise3"] = depthwise(hidden)
            parts["pointwise3"] = pointwise(hidden, grown)
        else:
            parts["expand"] = pointwise(half, hidden)
            parts["depthwise"] = depthwise(hidden, stride)
            parts["project"] = pointwise(hidden, grown)
        self.branch = nn.Sequential(parts)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        if self.splits:
            passed, features = features[:, 0::2], features[:, 1::2]
        else:
            passed = self.pass_project(self.pass_depthwise(features))
        return torch.cat([passed, self.branch(features)], dim=1)

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module; channels that pass untouched are the shortcut of this unit."""
        passing = () if self.splits else self.pass_project.output_parameters
        last: ConvBatchNorm = self.branch[-1]  # type: ignore[assignment]
        return (*passing, *last.output_parameters)


class Reduction(nn.Module):
    """NAS-Bench-201's residual block between stages: half the size, twice the channels."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, bn_eps: float
    ) -> None:
        super().__init__()
        self.conv_a = ReluConv(
            in_channels, out_channels, kernel=kernel, stride=stride, bn_eps=bn_eps
        )
        self.conv_b = ReluConv(out_channels, out_channels, kernel=kernel, stride=1, bn_eps=bn_eps)
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
        self.downsample = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        shortcut: torch.Tensor = self.downsample(self.pool(features))
        branch: torch.Tensor = self.conv_b(self.conv_a(features))
        return branch + shortcut


class PreActivationConv(nn.Sequential):
    """BatchNorm, where asked for ReLU, a convolution, where asked for another BatchNorm.

    A convolution in two groups is followed by a channel shuffle.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        groups: int = 1,
        activation: bool = True,
        normed: bool = False,
        bn_eps: float,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["norm"] = nn.BatchNorm2d(in_channels, eps=bn_eps)
        if activation:
            parts["act"] = nn.ReLU(inplace=True)
        parts["conv"] = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        if groups > 1:
            parts["shuffle"] = nn.ChannelShuffle(groups)
        if normed:
            parts["bn"] = nn.BatchNorm2d(out_channels, eps=bn_eps)
        super().__init__(parts)

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module."""
        return (self.bn.weight, self.bn.bias) if hasattr(self, "bn") else (self.conv.weight,)


class SeparableConv(nn.Sequential):
    """BatchNorm, ReLU, depthwise convolution, 1x1 convolution (the leaves of the tree cell)."""

    pointwise: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        dilation: int = 1,
        bn_eps: float,
    ) -> None:
        depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            kernel,
            stride,
            dilation * (kernel // 2),
            dilation=dilation,
            groups=in_channels,
            bias=False,
        )
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(in_channels, eps=bn_eps),
                act=nn.ReLU(inplace=True),
                depthwise=depthwise,
                pointwise=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            )
        )

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module."""
        return (self.pointwise.weight,)


class BatchNormReLU(nn.Sequential):
    """BatchNorm, then ReLU."""

    bn: nn.BatchNorm2d

    def __init__(self, channels: int, bn_eps: float) -> None:
        super().__init__(
            OrderedDict(bn=nn.BatchNorm2d(channels, eps=bn_eps), act=nn.ReLU(inplace=True))
        )

    @property
    def output_parameters(self) -> tuple[torch.Tensor, ...]:
        """See the module."""
        return self.bn.weight, self.bn.bias


class Half(nn.Module):
    """One half of the channels, the first or the last."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C / 2, H, W)."""
        halves: tuple[torch.Tensor, ...] = features.chunk(2, dim=1)
        return halves[self.index]


class Padded(nn.Module):
    """The input pooled by the stride, with zero channels appended (PyramidNet's shortcut)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        if self.stride > 1:
            features = nn.functional.avg_pool2d(features, self.stride, ceil_mode=True)
        return nn.functional.pad(features, (0, 0, 0, 0, 0, self.extra_channels))


class Zero(nn.Module):
    """The candidate that computes nothing."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Zeros of the shape of `features`."""
        return torch.zeros_like(features)


PROPORTIONAL = (nn.Identity, nn.AvgPool2d, nn.MaxPool2d, Half, Padded)
"""Operations without weights whose output is proportional to their input."""


class Classifier(nn.Sequential):
    """Global average pool and a linear layer: (B, C, H, W) -> (B, n_classes)."""

    linear: nn.Linear

    def __init__(self, in_channels: int, n_classes: int, *, bias: bool = True) -> None:
        super().__init__(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.0),
                linear=nn.Linear(in_channels, n_classes, bias=bias),
            )
        )


def operation(spec: BlockSpec, bn_eps: float) -> partial[Any]:
    """The module class of `spec` and its arguments; a shortcut is the layer's business."""
    channels = (spec.in_channels, spec.out_channels)
    match spec.kind:
        case BlockKind.CONV | BlockKind.CONV_RELU | BlockKind.CONV_LINEAR:
            activation = {BlockKind.CONV: nn.ReLU6, BlockKind.CONV_RELU: nn.ReLU}.get(spec.kind)
            return partial(
                ConvBatchNorm,
                *channels,
                kernel=spec.kernel,
                stride=spec.stride,
                activation=activation,
                bn_eps=bn_eps,
            )
        case BlockKind.RELU_CONV:
            return partial(
                ReluConv, *channels, kernel=spec.kernel, stride=spec.stride, bn_eps=bn_eps
            )
        case BlockKind.MBCONV:
            return partial(
                MBConv,
                *channels,
                kernel=spec.kernel,
                expansion=spec.expansion,
                stride=spec.stride,
                bn_eps=bn_eps,
            )
        case BlockKind.SHUFFLE | BlockKind.XCEPTION:
            return partial(
                ShuffleUnit,
                *channels,
                kernel=spec.kernel,
                stride=spec.stride,
                xception=spec.kind is BlockKind.XCEPTION,
                bn_eps=bn_eps,
            )
        case BlockKind.REDUCTION:
            return partial(
                Reduction, *channels, kernel=spec.kernel, stride=spec.stride, bn_eps=bn_eps
            )
        case BlockKind.BN_CONV | BlockKind.PREACT_CONV | BlockKind.GROUP_CONV:
            return partial(
                PreActivationConv,
                *channels,
                kernel=spec.kernel,
                stride=spec.stride,
                groups=2 if spec.kind is BlockKind.GROUP_CONV else 1,
                activation=spec.kind is not BlockKind.BN_CONV,
                normed=spec.kind is BlockKind.PREACT_CONV,
                bn_eps=bn_eps,
            )
        case BlockKind.SEP_CONV | BlockKind.DIL_CONV:
            return partial(
                SeparableConv,
                *channels,
                kernel=spec.kernel,
                stride=spec.stride,
                dilation=2 if spec.kind is BlockKind.DIL_CONV else 1,
                bn_eps=bn_eps,
            )
        case BlockKind.AVG_POOL:
            padding = spec.kernel // 2
            return partial(nn.AvgPool2d, spec.kernel, spec.stride, padding, count_include_pad=False)
        case BlockKind.MAX_POOL:
            return partial(nn.MaxPool2d, spec.kernel, spec.stride, spec.kernel // 2)
        case BlockKind.FIRST_HALF | BlockKind.LAST_HALF:
            return partial(Half, 0 if spec.kind is BlockKind.FIRST_HALF else 1)
        case BlockKind.PADDED:
            return partial(Padded, *channels, spec.stride)
        case BlockKind.BN:
            return partial(nn.BatchNorm2d, spec.in_channels, eps=bn_eps)
        case BlockKind.BN_RELU:
            return partial(BatchNormReLU, spec.in_channels, bn_eps=bn_eps)
        case BlockKind.SKIP:
            return partial(nn.Identity)
        case BlockKind.NONE | BlockKind.ZERO:
            return partial(Zero)
        case BlockKind.CLASSIFIER | BlockKind.FC:
            return partial(Classifier, *channels, bias=spec.kind is BlockKind.CLASSIFIER)


def build_operation(spec: BlockSpec, bn_eps: float) -> nn.Module:
    """The operation of `spec`, freshly initialised, without its shortcut."""
    module: nn.Module = operation(spec, bn_eps)()
    return module


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
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
            part.reset_running_stats()
