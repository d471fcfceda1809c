"""Augmentation of whole batches on the device that holds them.

Random numbers are drawn on the CPU and moved, so that a batch is the same on every device;
no image is touched alone.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, pad

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601
_CROP_TRIES = 10


class Mix(NamedTuple):
    """Images blended with those of other rows of the batch.

    Attributes:
        images: (B, C, H, W).
        partners: (B,) int64, the row that each image was blended with.
        weight: share of the image's own label in [0, 1]; the partner's has the rest.
    """

    images: torch.Tensor
    partners: torch.Tensor
    weight: float


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images before a network sees them; nothing by default.

    The published colour jitter of ProxylessNAS is `brightness=32 / 255, saturation=0.5`
    ("normal", in the search) and `brightness=contrast=saturation=0.4, hue=0.1` ("strong",
    final training).

    Attributes:
        shift_px: padded with black by this many pixels, then cropped at random.
        flip: mirrored left to right, half of the time.
        crop_scale: range of the share of the area that a random crop keeps before it is
            resized to the full image (Szegedy et al. 2015); None crops nothing.
        crop_ratio: range of that crop's width over height.
        brightness, contrast, saturation: each scales by a factor within 1 +- this, in this
            order.
        hue: turned by at most this share of the colour circle, at most 0.5. Grey images have
            no saturation and no hue; they stay as they are.
        cutout_px: side of a square set to the mean colour, around a random pixel and clipped
            at the border (DeVries and Taylor 2017).
        mixup_alpha: whole batches are blended with weight ~ Beta(alpha, alpha) (Zhang et al.
            2018); for final training, as is the next.
        cutmix_alpha: a box is pasted whose area is 1 - weight (Yun et al. 2019). With both
            given, a fair coin decides between them at every step.
    """

    shift_px: int = 0
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout_px: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift_px", "brightness", "contrast", "saturation", "hue", "cutout_px",
                     "mixup_alpha", "cutmix_alpha"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.hue > 0.5:
            raise ValueError(f"hue is {self.hue}; half of the colour circle is 0.5, the most")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; it must be a range within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; it must be a range above 0")

    def pixels(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Crops, mirrors and colours.

        Args:
            images: (B, C, H, W) uint8.
            generator: on the CPU.

        Returns:
            (B, C, H, W), uint8 or, where something interpolates, float32 within 0 and 255.
        """
        if self.shift_px:
            images = _shifted(images, self.shift_px, generator)
        if self.flip:
            mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(
                images.device, non_blocking=True
            )
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.crop_scale is not None:
            images = _resized_crop(images, self.crop_scale, self.crop_ratio, generator)
        if self.brightness or self.contrast or self.saturation or self.hue:
            images = self._jittered(images, generator)
        return images

    def cut(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Normalised images (B, C, H, W) with the cutout square at 0, the mean colour."""
        if not self.cutout_px:
            return images
        batch, _, height, width = images.shape
        top = torch.randint(height, (batch,), generator=generator) - self.cutout_px // 2
        left = torch.randint(width, (batch,), generator=generator) - self.cutout_px // 2
        box = _boxes(images, top, left, self.cutout_px, self.cutout_px)
        return images.masked_fill(box.to(images.device, non_blocking=True), 0.0)

    def mix(self, images: torch.Tensor, generator: torch.Generator) -> Mix | None:
        """Mixup or CutMix of normalised images (B, C, H, W); None where neither is asked for."""
        if not (self.mixup_alpha or self.cutmix_alpha):
            return None
        batch, _, height, width = images.shape
        partners = torch.randperm(batch, generator=generator)
        heads = bool(torch.rand((), generator=generator) < 0.5)
        pasted = bool(self.cutmix_alpha) and (heads or not self.mixup_alpha)
        alpha = self.cutmix_alpha if pasted else self.mixup_alpha
        seed = int(torch.randint(2**62, (), generator=generator))
        weight = float(np.random.default_rng(seed).beta(alpha, alpha))  # torch's takes no generator
        partners = partners.to(images.device, non_blocking=True)
        if not pasted:
            return Mix(weight * images + (1.0 - weight) * images[partners], partners, weight)
        share = (1.0 - weight) ** 0.5
        box_height, box_width = int(height * share), int(width * share)
        top = torch.randint(height, (1,), generator=generator) - box_height // 2
        left = torch.randint(width, (1,), generator=generator) - box_width // 2
        box = _boxes(images, top, left, box_height, box_width)  # (1, 1, H, W)
        weight = 1.0 - box.sum().item() / (height * width)  # clipped at the border
        pasted_in = torch.where(box.to(images.device, non_blocking=True), images[partners], images)
        return Mix(pasted_in, partners, weight)

    def _jittered(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        reach = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
        drawn = 2.0 * torch.rand(4, len(images), generator=generator) - 1.0  # (4, B)
        drawn = (drawn * reach[:, None]).to(images.device, non_blocking=True)
        factors = (1.0 + drawn[:3]).clamp_min(0.0)[:, :, None, None, None]  # (3, B, 1, 1, 1)
        images = images.float().contiguous()  # channels last would broadcast over three values
        if self.brightness:
            images = (images * factors[0]).clamp(0.0, 255.0)
        if self.contrast:
            mean = _grey(images).mean(dim=(2, 3), keepdim=True)
            images = ((images - mean) * factors[1] + mean).clamp(0.0, 255.0)
        if self.saturation:
            grey = _grey(images)
            images = ((images - grey) * factors[2] + grey).clamp(0.0, 255.0)
        if self.hue and images.shape[1] == 3:
            images = _turned(images, drawn[3])
        return images


def _shifted(images: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    batch, _, height, width = images.shape
    padded = pad(images, (reach, reach, reach, reach))
    shifts = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)[:, :, 0]
    down, right = shifts.to(images.device, non_blocking=True)
    # (B, C, 2 reach + 1, 2 reach + 1, H, W), a view
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, down, right]


def _resized_crop(
    images: torch.Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> torch.Tensor:
    """Random crops resized to full size; the whole image where ten draws of a crop did not fit."""
    batch, channels, height, width = images.shape
    draws = torch.rand(2, _CROP_TRIES, batch, generator=generator)
    place = torch.rand(2, batch, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]  # share of the whole
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[1])  # uniform in its logarithm
    across = (area * aspect * height / width).sqrt()  # share of the width
    down = (area / aspect * width / height).sqrt()  # share of the height
    fits = (across <= 1.0) & (down <= 1.0)  # (tries, B)
    first = fits.int().argmax(dim=0)
    rows = torch.arange(batch)
    whole = ~fits.any(dim=0)
    across = across[first, rows].masked_fill(whole, 1.0)
    down = down[first, rows].masked_fill(whole, 1.0)
    # from [-1, 1] of the crop to [-1, 1] of the image
    transform = torch.zeros(batch, 2, 3)
    transform[:, 0, 0], transform[:, 1, 1] = across, down
    transform[:, 0, 2] = (2.0 * place[0] - 1.0) * (1.0 - across)
    transform[:, 1, 2] = (2.0 * place[1] - 1.0) * (1.0 - down)
    grid = affine_grid(
        transform.to(images.device, non_blocking=True),
        [batch, channels, height, width],
        align_corners=False,
    )
    return grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _boxes(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Whether pixels are in the box at each of n places, (n, 1, H, W), on the CPU."""
    rows = torch.arange(images.shape[2])[None] - top[:, None]  # (n, H)
    columns = torch.arange(images.shape[3])[None] - left[:, None]  # (n, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    return inside[:, None]


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Luminance (B, 1, H, W); of a grey image, itself."""
    if images.shape[1] == 1:
        return images
    weights = _channels(_GREY, images.device)
    return (images * weights).sum(dim=1, keepdim=True)


def _turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """RGB images (B, 3, H, W) in 0..255 with their HSV hue moved by `turns` (B,) of a circle."""
    largest, smallest = images.amax(dim=1), images.amin(dim=1)  # (B, H, W)
    span = largest - smallest
    safe = span.clamp_min(1e-12)
    red, green, blue = images.unbind(dim=1)
    hue = torch.where(
        largest == red,
        (green - blue) / safe,
        torch.where(largest == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )  # sixths of the circle
    hue = hue + 6.0 * turns[:, None, None]
    # channel = value - span * clamp(min(k, 4 - k), 0, 1), k = (n + hue) mod 6, n = 5, 3, 1
    offsets = _channels((5.0, 3.0, 1.0), images.device)
    k = (offsets + hue[:, None]) % 6.0
    return largest[:, None] - span[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


@lru_cache(maxsize=8)
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, C, 1, 1); kept, since moving it makes the host wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
