"""Small data sets written in every form that is read."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image


def encoded(image, form):
    """One image (H, W, C) as the bytes of a file."""
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


class Written:
    """Random images of a balanced set, and a writer for each of its forms.

    Attributes:
        x_train, x_test: (N, H, W, C) uint8.
        y_train, y_test: (N,) int64, in no order.
    """

    def __init__(self, n_classes=10, per_class=(5, 2), side_px=32, channels=3, seed=0):
        draw = np.random.default_rng(seed)
        self.n_classes, self.per_class = n_classes, per_class
        sizes = [n_classes * n for n in per_class]
        self.x_train, self.x_test = (
            draw.integers(0, 256, (n, side_px, side_px, channels), np.uint8) for n in sizes
        )
        self.y_train, self.y_test = (draw.permutation(n) % n_classes for n in sizes)

    @property
    def sides(self):
        return ("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)

    def npz(self, file, **changed):
        arrays = {
            "x_train": self.x_train,
            "y_train": self.y_train,
            "x_test": self.x_test,
            "y_test": self.y_test,
        }
        np.savez(file, **{**arrays, **changed})
        return file

    def records(self, images, labels, coarse=None):
        planes = images.transpose(0, 3, 1, 2)
        return b"".join(
            bytes([label] if coarse is None else [coarse[label], label]) + plane.tobytes()
            for plane, label in zip(planes, labels.tolist(), strict=True)
        )

    def cifar10_binary(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in range(5):
            rows = slice(part * len(self.x_train) // 5, (part + 1) * len(self.x_train) // 5)
            content = self.records(self.x_train[rows], self.y_train[rows])
            (folder / f"data_batch_{part + 1}.bin").write_bytes(content)
        (folder / "test_batch.bin").write_bytes(self.records(self.x_test, self.y_test))
        return folder

    def cifar100_binary(self, folder, coarse):
        folder.mkdir(parents=True, exist_ok=True)
        for side, images, labels in self.sides:
            (folder / f"{side}.bin").write_bytes(self.records(images, labels, coarse))
        return folder

    def idx(self, folder, zipped):
        folder.mkdir(parents=True, exist_ok=True)
        for (_, images, labels), stem in zip(self.sides, ("train", "t10k"), strict=True):
            heads = [
                np.array(array.shape[:n], ">u4").tobytes()
                for array, n in ((images, 3), (labels, 1))
            ]
            for name, head, array in (
                (f"{stem}-images-idx3-ubyte", b"\0\0\x08\x03" + heads[0], images),
                (f"{stem}-labels-idx1-ubyte", b"\0\0\x08\x01" + heads[1], labels),
            ):
                content = head + array.astype(np.uint8).tobytes()
                if zipped:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(content))
                else:
                    (folder / name).write_bytes(content)
        return folder

    def blobs(self, folder, name, form="WEBP"):
        folder.mkdir(parents=True, exist_ok=True)
        half = len(self.x_train) // 2
        for part, images, labels in (
            ("train_a", self.x_train[:half], self.y_train[:half]),
            ("train_b", self.x_train[half:], self.y_train[half:]),
            ("test", self.x_test, self.y_test),
        ):
            files = [encoded(image, form) for image in images]
            np.savez(
                folder / f"{name}_{part}.npz",
                blob=np.frombuffer(b"".join(files), np.uint8),
                offsets=np.cumsum([0, *map(len, files)]).astype(np.uint32),
                labels=labels.astype(np.uint8),
            )
        return folder

    def folders(self, root, names=None, *, test=True):
        """`root/train/NAME/*.png` and `root/test/NAME/*.png`, or without sides."""
        for side, images, labels in self.sides if test else self.sides[:1]:
            for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                name = str(label) if names is None else names[label]
                folder = root / side / name if test else root / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{row:05}.png").write_bytes(encoded(image, "PNG"))
        return root


@pytest.fixture(scope="session")
def make():
    return Written


@pytest.fixture(scope="session")
def cifar_like():
    """Ten classes of five training and two test images of 32 x 32 pixels in colour."""
    return Written()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Three classes of JPEG and PNG photographs of many sizes, 12 and 4 of each."""
    root, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(1)
    for side, n in (("train", 12), ("test", 4)):
        for name in ("apple", "birch", "cloud"):
            (root / side / name).mkdir(parents=True)
            for row in range(n):
                height, width = draw.integers(18, 40, 2)
                image = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
                image.save(root / side / name / f"{row}.{'jpg' if row % 2 else 'png'}")
    return root
