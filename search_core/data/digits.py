"""The 1,797 handwritten digits that ship inside scikit-learn: 8 x 8 grey, ten classes."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from search_core.data.augmentation import Augmentation
from search_core.data.dataset import ImageDataset

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def digits() -> ImageDataset:
    """1,437 images to train on and 360 held out, stratified by class, always the same ones."""
    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.uint8)[:, None]  # (1797, 1, 8, 8), 0..16
    labels = torch.from_numpy(raw.target).long()
    train, test = train_test_split(
        torch.arange(len(images)).numpy(),
        test_size=_TEST_SHARE,
        stratify=labels.numpy(),
        random_state=_SPLIT_SEED,
    )
    pixels = images[train].float()
    return ImageDataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        mean=(pixels.mean().item(),),
        std=(pixels.std().item(),),
        n_classes=10,
        augmentation=Augmentation(shift_px=1),
    )
