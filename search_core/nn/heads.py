"""Example heads on a `FeatureBackbone`: semantic segmentation and anchor-free detection."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

_REACH = 8
"""A level finds objects that reach up to so many of its strides from a point, as in FCOS."""


class FeaturePyramid(nn.Module):
    """Maps of one width at each stride, each told of the coarser ones (FPN, Lin et al. 2017).

    Args:
        channels: of the backbone's maps, fine to coarse.
        width: channels of every map that comes out.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """[(B, C_i, H_i, W_i), ...] -> [(B, width, H_i, W_i), ...]."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for level in reversed(range(len(maps) - 1)):
            size = maps[level].shape[-2:]
            maps[level] = maps[level] + functional.interpolate(maps[level + 1], size)
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class SegmentationHead(nn.Module):
    """Class scores of every pixel: a pyramid, summed at its finest level, and a 1x1 classifier.

    As the semantic branch of Panoptic FPN (Kirillov et al. 2019), with one convolution a level.

    Args:
        channels: of the backbone's maps, fine to coarse.
    """

    def __init__(self, channels: Sequence[int], n_classes: int, width: int = 64) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(channels, width)
        self.classifier = nn.Conv2d(width, n_classes, 1)

    def forward(self, features: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """(B, n_classes, H, W) for images of `size` (H, W)."""
        maps = self.pyramid(features)
        merged = maps[0]
        for coarser in maps[1:]:
            merged = merged + _enlarged(coarser, merged.shape[-2:])
        return _enlarged(self.classifier(torch.relu(merged)), size)


@dataclass(frozen=True)
class Detections:
    """What a `DetectionHead` says at every point of every level.

    Attributes:
        points: (P, 2), x and y in pixels of the image.
        strides: (P,), of the level of each point, in pixels.
        scores: (B, P, n_classes), logits.
        distances: (B, P, 4), from the point to the left, top, right and bottom, in pixels.
        centreness: (B, P), logits.
    """

    points: torch.Tensor
    strides: torch.Tensor
    scores: torch.Tensor
    distances: torch.Tensor
    centreness: torch.Tensor

    @property
    def boxes(self) -> torch.Tensor:
        """(B, P, 4): left, top, right, bottom in pixels."""
        return torch.cat(
            [self.points - self.distances[..., :2], self.points + self.distances[..., 2:]], dim=-1
        )

    @property
    def confidences(self) -> torch.Tensor:
        """(B, P, n_classes) in 0..1: the geometric mean of class probability and centre-ness."""
        return (self.scores.sigmoid() * self.centreness.sigmoid()[..., None]).sqrt()


class DetectionHead(nn.Module):
    """Anchor-free detection on a pyramid: FCOS (Tian et al. 2019), one convolution deep.

    Args:
        channels: of the backbone's maps, fine to coarse.
        strides: of the same maps.
        width: channels of the pyramid, a multiple of 8.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], n_classes: int, width: int = 64
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.pyramid = FeaturePyramid(channels, width)
        self.score_tower = _tower(width)
        self.box_tower = _tower(width)
        self.scores = nn.Conv2d(width, n_classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.centreness = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.constant_(self.scores.bias, -4.6)  # type: ignore[arg-type]  # 1 % (Lin et al. 2017)

    def forward(self, features: Sequence[torch.Tensor]) -> Detections:
        """The detections of all levels, before any suppression of doubles."""
        levels = []
        for stride, x in zip(self.strides, self.pyramid(features), strict=True):
            seen, boxed = self.score_tower(x), self.box_tower(x)
            points = _points(x, stride)
            levels.append(
                Detections(
                    points,
                    points.new_full((len(points),), stride),
                    _rows(self.scores(seen)),
                    stride * functional.softplus(_rows(self.distances(boxed))),
                    _rows(self.centreness(boxed))[..., 0],
                )
            )
        return Detections(
            torch.cat([level.points for level in levels]),
            torch.cat([level.strides for level in levels]),
            torch.cat([level.scores for level in levels], dim=1),
            torch.cat([level.distances for level in levels], dim=1),
            torch.cat([level.centreness for level in levels], dim=1),
        )


def detection_loss(
    found: Detections, boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The loss of FCOS: focal loss, -log IoU weighted by centre-ness, and centre-ness itself.

    Args:
        boxes: for each image (n, 4): left, top, right, bottom in pixels; n may be 0.
        labels: for each image (n,): classes.
    """
    pairs = [_targets(found, b, c) for b, c in zip(boxes, labels, strict=True)]
    distances = torch.stack([d for d, _ in pairs])  # (B, P, 4)
    classes = torch.stack([c for _, c in pairs])  # (B, P); n_classes where there is nothing
    n_classes = found.scores.shape[-1]
    hit = classes < n_classes
    n_hits = hit.sum().clamp(min=1)

    wanted = functional.one_hot(classes, n_classes + 1)[..., :n_classes].to(found.scores)
    focal = _focal_loss(found.scores, wanted).sum() / n_hits

    # centre-ness: sqrt(min(l, r) min(t, b) / (max(l, r) max(t, b))) (equation 3)
    true, guessed = distances[hit], found.distances[hit]  # (n_hits, 4)
    near, far = torch.minimum(true[:, :2], true[:, 2:]), torch.maximum(true[:, :2], true[:, 2:])
    centreness = (near.prod(-1) / far.prod(-1)).sqrt()
    overlap = torch.minimum(true, guessed)
    shared = (overlap[:, :2] + overlap[:, 2:]).prod(-1)
    union = sum((d[:, :2] + d[:, 2:]).prod(-1) for d in (true, guessed)) - shared
    box = (centreness * -(shared / union).log()).sum() / centreness.sum().clamp(min=1e-6)
    centre = functional.binary_cross_entropy_with_logits(
        found.centreness[hit], centreness, reduction="sum"
    )
    return focal + box + centre / n_hits


def _targets(
    found: Detections, boxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each point the distances (P, 4) and class (P,) of the smallest box it must find.

    A point must find a box that it lies in and whose size belongs to its level (FCOS,
    section 3.2); elsewhere the class is n_classes.
    """
    points, levels = found.points, torch.unique(found.strides)  # ascending
    upper = _REACH * levels
    lower = torch.cat([upper.new_zeros(1), upper[:-1]])
    upper = torch.cat([upper[:-1], upper.new_full((1,), torch.inf)])
    level = torch.searchsorted(levels, found.strides)
    distances = torch.cat(
        [points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], dim=-1
    )  # (P, n, 4)
    reach = distances.amax(-1)
    fits = (distances.amin(-1) > 0) & (reach > lower[level, None]) & (reach <= upper[level, None])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    areas = torch.where(fits, areas, torch.inf)
    nothing = areas.new_full((len(points), 1), torch.finfo(areas.dtype).max)
    chosen = torch.cat([areas, nothing], dim=1).argmin(1)  # (P,); n where nothing fits
    n_classes = found.scores.shape[-1]
    classes = torch.cat([labels, labels.new_full((1,), n_classes)])[chosen]
    distances = torch.cat([distances, distances.new_ones(len(points), 1, 4)], dim=1)
    return distances[torch.arange(len(points), device=points.device), chosen], classes


def _focal_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of every entry, with alpha 0.25 and gamma 2 (Lin et al. 2017, equation 5)."""
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missing = (wanted - logits.sigmoid()).abs()  # 1 - p_t
    return (0.25 * wanted + 0.75 * (1.0 - wanted)) * missing.square() * entropy


def _tower(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU())


def _points(features: torch.Tensor, stride: int) -> torch.Tensor:
    """(H W, 2): x and y of the centre of every pixel of a map, in pixels of the image."""
    height, width = features.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=features.device),
        torch.arange(width, device=features.device),
        indexing="ij",
    )
    return (torch.stack([x, y], dim=-1).reshape(-1, 2).to(features) + 0.5) * stride


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return maps.flatten(2).transpose(1, 2)


def _enlarged(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
