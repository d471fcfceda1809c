"""Data sets from files: every form of a set is the same set, and what is wrong is said."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from search_core.data import known
from search_core.data.augmentation import Augmentation
from search_core.data.catalogue import DatasetInfo, datasets
from search_core.data.dataset import ImageDataset
from search_core.data.decode import Decoder
from search_core.data.known import read_known
from search_core.data.load import load_dataset, resident
from search_core.errors import DatasetChecksumError, DatasetError, UnknownDatasetError

COARSE = [7 * fine % 20 for fine in range(100)]  # a class of classes; not the published one


def content(images, labels):
    """Labelled images in no order."""
    pixels = images.permute(0, 2, 3, 1)
    pairs = zip(pixels, labels.tolist(), strict=True)
    return sorted((image.numpy().tobytes(), label) for image, label in pairs)


def written_content(written, side):
    images, labels = getattr(written, f"x_{side}"), getattr(written, f"y_{side}")
    return content(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels))


def holds(data, written):
    """Whether the data set has exactly these images under these labels."""
    return content(data.train_images, data.train_labels) == written_content(
        written, "train"
    ) and content(data.test_images, data.test_labels) == written_content(written, "test")


def identical(a, b):
    return (
        torch.equal(a.train_images, b.train_images)
        and torch.equal(a.train_labels, b.train_labels)
        and torch.equal(a.test_images, b.test_images)
        and torch.equal(a.test_labels, b.test_labels)
        and (a.mean, a.std, a.n_classes, a.digest) == (b.mean, b.std, b.n_classes, b.digest)
    )


# every form of a known set


@pytest.fixture(scope="module")
def cifar10_forms(cifar_like, make, tmp_path_factory):
    """Path of each form of one small set."""
    root = tmp_path_factory.mktemp("cifar10")
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    cifar_like.cifar10_binary(root / "unpacked" / "cifar-10-batches-bin")
    (root / "arrays").mkdir()
    return {
        "binary": cifar_like.cifar10_binary(root / "binary"),
        "archive": root / "unpacked",
        "npz": cifar_like.npz(root / "any.npz"),
        "npz in a folder": cifar_like.npz(root / "arrays" / "cifar10.npz").parent,
        "column of labels": cifar_like.npz(
            root / "column.npz",
            y_train=cifar_like.y_train[:, None].astype(np.uint8),
            y_test=cifar_like.y_test[:, None].astype(np.uint8),
        ),
        "webp": cifar_like.blobs(root / "webp", "cifar10", "WEBP"),
        "png blobs": cifar_like.blobs(root / "png_blobs", "cifar10", "PNG"),
        "named folders": cifar_like.folders(root / "named", names.split(" ")),
        "numbered folders": cifar_like.folders(root / "numbered"),
    }


@pytest.mark.parametrize(
    "form",
    [
        "archive",
        "npz",
        "npz in a folder",
        "column of labels",
        "webp",
        "png blobs",
        "named folders",
        "numbered folders",
    ],
)
def test_every_form_of_cifar10_is_the_same_to_the_last_bit(cifar10_forms, cifar_like, form):
    binary = load_dataset("cifar10", cifar10_forms["binary"], verify=False)
    other = load_dataset("cifar10", str(cifar10_forms[form]), verify=False)
    assert holds(binary, cifar_like)
    assert identical(other, binary)
    assert other.augmentation == Augmentation(shift_px=4, flip=True)


@pytest.mark.parametrize("zipped", [False, True])
def test_every_form_of_fashion_mnist_is_the_same_to_the_last_bit(make, tmp_path, zipped):
    written = make(side_px=28, channels=1)
    idx = load_dataset("fashion_mnist", written.idx(tmp_path / "idx", zipped), verify=False)
    arrays = written.npz(
        tmp_path / "grey.npz", x_train=written.x_train[..., 0], x_test=written.x_test[..., 0]
    )
    assert holds(idx, written)
    assert idx.shape == (1, 28, 28)
    assert idx.augmentation == Augmentation(shift_px=2, flip=True)
    for form in (arrays, written.folders(tmp_path / "folders")):
        assert identical(load_dataset("fashion_mnist", form, verify=False), idx)


def test_cifar100_has_the_fine_labels_of_its_binary_files(make, tmp_path):
    written = make(n_classes=100, per_class=(2, 1))
    binary = written.cifar100_binary(tmp_path / "cifar-100-binary", COARSE)
    data = load_dataset("cifar100", tmp_path, verify=False)
    assert holds(data, written)
    assert data.n_classes == 100
    for form in (binary, written.npz(tmp_path / "x.npz"), written.folders(tmp_path / "folders")):
        assert identical(load_dataset("cifar100", form, verify=False), data)


# checksums


@pytest.fixture
def small_cifar10(cifar_like, cifar10_forms, monkeypatch):
    """The small set as if it were the published one."""
    data = load_dataset("cifar10", cifar10_forms["npz"], verify=False)
    monkeypatch.setitem(known.PINNED, "cifar10", data.digest)
    return DatasetInfo("cifar10", 3, 32, 10, 50, 20, "ask for it")


def test_every_form_meets_one_checksum(small_cifar10, cifar10_forms):
    decoder = Decoder()
    for form in cifar10_forms.values():
        raw = read_known(small_cifar10, form, decoder, verify=True)
        assert resident("cifar10", raw).digest == known.PINNED["cifar10"]


@pytest.mark.parametrize("changed", ["pixel", "label"])
def test_other_content_is_refused_saying_what_was_found(
    small_cifar10, cifar_like, tmp_path, changed
):
    images, labels = cifar_like.x_train.copy(), cifar_like.y_train.copy()
    if changed == "pixel":
        images[7, 3, 2, 1] ^= 1
    else:
        labels[:2] = labels[1], labels[0]
        assert labels[0] != labels[1]
    file = cifar_like.npz(tmp_path / "changed.npz", x_train=images, y_train=labels)
    with pytest.raises(
        DatasetChecksumError, match=r"changed\.npz .* ask for it; .*verify=False"
    ) as e:
        read_known(small_cifar10, file, Decoder(), verify=True)
    data = load_dataset("cifar10", file, verify=False)
    assert (e.value.expected, e.value.found) == (known.PINNED["cifar10"], data.digest)
    assert data.digest in str(e.value)


def test_a_part_of_a_known_set_is_refused_saying_what_is_missing(cifar10_forms):
    message = "50 of 50000 training images were found; class 0 has 5, not 5000"
    for form in cifar10_forms.values():
        with pytest.raises(DatasetError, match=message):
            load_dataset("cifar10", form)


def test_cifar100_is_held_against_the_checksums_of_its_binary_files(make, tmp_path, monkeypatch):
    written = make(n_classes=100, per_class=(2, 1))
    coarse = list(known._COARSE)
    binary = written.cifar100_binary(tmp_path / "binary", coarse)
    pins = [
        hashlib.sha256((binary / name).read_bytes()).hexdigest()
        for name in ("train.bin", "test.bin")
    ]
    monkeypatch.setattr(known, "PINNED_CIFAR100_FILES", tuple(pins))
    info, decoder = DatasetInfo("cifar100", 3, 32, 100, 200, 100, "ask for it"), Decoder()
    for form in (binary, written.npz(tmp_path / "x.npz"), written.folders(tmp_path / "folders")):
        read_known(info, form, decoder, verify=True)
    images = written.x_test.copy()
    images[0, 0, 0, 0] ^= 1
    changed = written.npz(tmp_path / "changed.npz", x_test=images)
    with pytest.raises(DatasetChecksumError, match=r"of test\.bin in .*changed\.npz"):
        read_known(info, changed, decoder, verify=True)


def test_each_coarse_label_of_cifar100_has_five_fine_ones():
    assert np.bincount(np.frombuffer(known._COARSE, np.uint8)).tolist() == [5] * 20


# data of one's own


def test_an_npz_keeps_the_order_of_its_rows(make, tmp_path):
    written = make(n_classes=3, per_class=(6, 2), side_px=9, channels=1)
    data = load_dataset("mine", written.npz(tmp_path / "mine.npz"))
    assert isinstance(data, ImageDataset)
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(written.x_train[..., 0]))
    assert data.train_labels.tolist() == written.y_train.tolist()
    assert torch.equal(data.test_images[:, 0], torch.from_numpy(written.x_test[..., 0]))
    assert (data.name, data.n_classes, data.augmentation) == ("mine", 3, Augmentation())
    pixels = written.x_train / 1.0
    assert data.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert data.std == pytest.approx((pixels.std(),), rel=1e-12)


def test_images_without_a_test_side_give_a_fifth_of_each_class(make, tmp_path):
    written = make(n_classes=3, per_class=(10, 1), side_px=9)
    np.savez(tmp_path / "mine.npz", images=written.x_train, labels=written.y_train)
    data = load_dataset("mine", tmp_path / "mine.npz")
    assert data.train_labels.bincount().tolist() == [8, 8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2, 2]
    whole = content(data.train_images, data.train_labels)
    whole += content(data.test_images, data.test_labels)
    assert sorted(whole) == written_content(written, "train")
    assert load_dataset("mine", tmp_path / "mine.npz").digest == data.digest


def test_class_folders_without_a_test_side_give_a_fifth_of_each_class(make, tmp_path):
    written = make(n_classes=3, per_class=(10, 1), side_px=9)
    roots = [
        written.folders(tmp_path / "bare", ["ash", "birch", "train"], test=False),
        written.folders(tmp_path / "sided" / "train", ["ash", "birch", "train"], test=False).parent,
    ]
    first, second = (load_dataset("trees", root) for root in roots)
    assert first.test_labels.bincount().tolist() == [2, 2, 2]
    whole = content(first.train_images, first.train_labels)
    whole += content(first.test_images, first.test_labels)
    assert sorted(whole) == written_content(written, "train")
    assert first.digest == second.digest


def test_grey_files_give_one_channel_and_a_single_colour_file_gives_three(make, tmp_path):
    written = make(n_classes=2, per_class=(4, 1), side_px=9, channels=1)
    root = written.folders(tmp_path / "folder")
    grey = load_dataset("mine", root)
    assert holds(grey, written)
    Image.new("RGB", (9, 9), (255, 0, 0)).save(root / "train" / "0" / "red.png")
    colour = load_dataset("mine", root)
    assert colour.shape == (3, 9, 9)
    assert torch.equal(colour.test_images, grey.test_images.expand(-1, 3, -1, -1))


def test_resizing_takes_the_central_square(tmp_path):
    for name, shade in (("dark", 10), ("light", 200)):
        for row in range(6):
            image = Image.new("L", (30, 10), 0)  # black outside of the central square
            image.paste(shade + row, (10, 0, 20, 10))
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{row}.png")
    data = load_dataset("shades", tmp_path, resolution_px=4)
    assert data.shape == (1, 4, 4)
    values = data.train_images.flatten(1)
    assert torch.equal(values, values[:, :1].expand(-1, 16))
    assert (data.train_labels == (values[:, 0] >= 200)).all()


def test_hidden_files_and_other_files_are_no_images(make, tmp_path):
    written = make(n_classes=2, per_class=(4, 1), side_px=9)
    root = written.folders(tmp_path / "folder")
    (root / "train" / "0" / "._00000.png").write_bytes(b"resource fork")
    (root / "train" / "0" / "notes.txt").write_text("nothing")
    (root / ".cache").mkdir()
    (root / "train" / ".cache").mkdir()
    assert holds(load_dataset("mine", root), written)


def test_only_a_folder_too_large_for_the_limit_streams(make, tmp_path):
    root = make(n_classes=2, per_class=(4, 1), side_px=9).folders(tmp_path)
    n_bytes = 10 * 9 * 9 * 3
    assert isinstance(load_dataset("mine", root, max_resident_bytes=n_bytes), ImageDataset)
    assert not isinstance(load_dataset("mine", root, max_resident_bytes=n_bytes - 1), ImageDataset)


# what is wrong is said before a search starts


def test_an_unknown_name_without_a_root_is_refused_listing_the_known_ones():
    with pytest.raises(
        UnknownDatasetError, match=r"'flowers'; known: cifar10, .*, fashion_mnist. .* needs a root"
    ):
        load_dataset("flowers")


@pytest.mark.parametrize("info", [i for i in datasets() if not i.bundled], ids=lambda i: i.name)
def test_missing_files_are_answered_with_the_command_that_gets_them(info, tmp_path):
    (tmp_path / "empty").mkdir()
    for root, fault in (
        (None, "needs a root"),
        (tmp_path / "nowhere", "nowhere is missing"),
        (tmp_path / "empty", "holds no form of"),
    ):
        with pytest.raises(DatasetError, match=fault) as error:
            load_dataset(info.name, root)
        assert info.obtain in str(error.value)


IMAGES = np.zeros((18, 9, 9, 3), np.uint8)
LABELS = np.arange(18) % 3
WITH_NAN = np.where(np.arange(18) == 4, np.nan, 0.5).reshape(18, 1, 1)

WRONG_ARRAYS = {
    "pixels are NaN": (
        {"x_train": IMAGES[..., 0] + WITH_NAN},
        "training side: the images contain NaN",
    ),
    "pixels are fractions": (
        {"x_train": IMAGES / 255},
        "the images are float64; store them as uint8",
    ),
    "pixels are objects": ({"x_train": np.array([{}] * 18)}, "cannot be read as an .npz of plain"),
    "channels first": (
        {"x_train": IMAGES.transpose(0, 3, 1, 2)},
        r"have the shape \(18, 3, 9, 9\)",
    ),
    "not square": ({"x_train": IMAGES[:, 1:]}, r"have the shape \(18, 8, 9, 3\); square ones"),
    "flat": ({"x_train": IMAGES.reshape(18, -1)}, r"have the shape \(18, 243\)"),
    "four channels": ({"x_train": np.zeros((18, 9, 9, 4), np.uint8)}, r"\(18, 9, 9, 4\)"),
    "no images": ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "test side: there are no images"),
    "too few labels": ({"y_train": LABELS[1:]}, "18 images, but 17 labels"),
    "labels are NaN": ({"y_train": WITH_NAN.ravel()}, "the labels contain NaN"),
    "labels are fractions": ({"y_train": LABELS / 2}, "the labels are float64 of the shape"),
    "labels are one-hot": (
        {"y_train": np.eye(3, dtype=int)[LABELS]},
        r"int64 of the shape \(18, 3\)",
    ),
    "one class": ({"y_train": 0 * LABELS}, "every training image has the label 0; at least two"),
    "a negative label": ({"y_train": LABELS - 1}, "label -1 is negative"),
    "a gap in the labels": ({"y_train": LABELS * 2}, "labels run to 4, but no .* the label 1"),
    "labels from one": ({"y_train": LABELS + 1}, "labels run to 3, but no .* the label 0"),
    "an unseen test label": ({"y_test": np.full(6, 3)}, "a test image has the label 3; .* 0 to 2"),
    "a negative test label": ({"y_test": np.full(6, -1)}, "a test image has the label -1"),
    "sides of two sizes": (
        {"x_test": np.zeros((6, 8, 8, 3), np.uint8)},
        r"test images \(8, 8, 3\)",
    ),
}


@pytest.mark.parametrize(("changed", "message"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS.keys())
def test_arrays_that_are_no_data_set_are_refused(make, tmp_path, changed, message):
    file = make(n_classes=3, per_class=(6, 2), side_px=9).npz(tmp_path / "mine.npz", **changed)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset("mine", file)
    assert "mine.npz" in str(error.value)


def test_an_npz_with_other_arrays_or_none_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=IMAGES, y=LABELS)
    with pytest.raises(DatasetError, match=r"other\.npz has the arrays x, y; needed are x_train"):
        load_dataset("mine", tmp_path / "other.npz")
    whole = (tmp_path / "other.npz").read_bytes()
    for damaged in (b"", b"something else", whole[: len(whole) // 2]):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"damaged\.npz cannot be read"):
            load_dataset("mine", tmp_path / "damaged.npz")
    middle = len(whole) // 3
    (tmp_path / "flipped.npz").write_bytes(whole[:middle] + b"\xff" + whole[middle + 1 :])
    with pytest.raises(DatasetError, match=r"flipped\.npz"):
        load_dataset("mine", tmp_path / "flipped.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"archive")
    for name in ("cifar10", "mine"):
        with pytest.raises(DatasetError, match=r"tar\.gz .*\.npz"):
            load_dataset(name, tmp_path / "cifar-10-binary.tar.gz")


def test_a_known_set_of_another_shape_is_refused(make, tmp_path):
    small = make(side_px=28, channels=1).npz(tmp_path / "x.npz")
    with pytest.raises(DatasetError, match=r"images are \(28, 28, 1\) .* not \(32, 32, 3\) of 10"):
        load_dataset("cifar10", small, verify=False)


def test_binary_files_that_are_missing_or_cut_off_are_named(cifar_like, tmp_path):
    folder = cifar_like.cifar10_binary(tmp_path)
    content = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(content[:-1])
    with pytest.raises(
        DatasetError, match=r"data_batch_3\.bin has 30729 bytes, .* records of 3073"
    ):
        load_dataset("cifar10", folder)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin is missing"):
        load_dataset("cifar10", folder)


def test_idx_files_that_are_missing_damaged_or_cut_off_are_named(make, tmp_path):
    folder = make(side_px=28, channels=1).idx(tmp_path, zipped=False)
    images = folder / "train-images-idx3-ubyte"
    content = images.read_bytes()
    for damaged, message in (
        (content[:-5], r"idx3-ubyte announces 39200 values and has 39195"),
        (b"\0\0\x0d\x03" + content[4:], "idx3-ubyte is no IDX file of unsigned bytes"),
        (content[:6], "idx3-ubyte is no IDX file of unsigned bytes"),
    ):
        images.write_bytes(damaged)
        with pytest.raises(DatasetError, match=message):
            load_dataset("fashion_mnist", folder)
    images.unlink()
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte is missing"):
        load_dataset("fashion_mnist", folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        load_dataset("fashion_mnist", folder)


def test_blobs_that_do_not_hold_images_are_named(cifar_like, make, tmp_path):
    folder = cifar_like.blobs(tmp_path, "cifar10")
    file = folder / "cifar10_train_b.npz"
    arrays = dict(np.load(file))

    def refused(message, **changed):
        np.savez(file, **{**arrays, **changed})
        with pytest.raises(DatasetError, match=message):
            load_dataset("cifar10", folder)

    broken = arrays["blob"].copy()
    broken[arrays["offsets"][3] : arrays["offsets"][3] + 20] = 0
    refused(r"image 3 of .*train_b\.npz cannot be read as an image", blob=broken)
    refused("offsets do not split the blob", offsets=arrays["offsets"][::-1])
    refused("offsets do not split the blob", blob=arrays["blob"][:-9])
    refused("offsets do not split the blob", offsets=arrays["offsets"][:1])
    refused("25 images, but 24 labels", labels=arrays["labels"][1:])
    other = make(side_px=16).blobs(tmp_path / "other", "cifar10") / "cifar10_train_b.npz"
    refused(r"train_b\.npz have the shape \(16, 16, 3\)", **dict(np.load(other)))
    np.savez(file, pixels=arrays["blob"])
    with pytest.raises(DatasetError, match=r"has the arrays pixels; needed are blob, offsets"):
        load_dataset("cifar10", folder)


@pytest.fixture
def folder(make, tmp_path):
    return make(n_classes=2, per_class=(5, 2), side_px=9).folders(tmp_path / "mine", ["ash", "elm"])


@pytest.mark.parametrize("max_resident_bytes", [0, 10**9], ids=["streamed", "resident"])
@pytest.mark.parametrize("damage", ["cut off", "empty", "text"])
def test_a_damaged_image_is_named(folder, max_resident_bytes, damage):
    file = sorted((folder / "test" / "elm").iterdir())[1]
    whole = file.read_bytes()
    file.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b"", "text": b"no"}[damage])
    with pytest.raises(DatasetError, match=f"elm.{file.name} cannot be read as an image .*replace"):
        load_dataset("mine", folder, max_resident_bytes=max_resident_bytes)


def test_images_of_several_sizes_are_refused_unless_resized(folder):
    Image.new("RGB", (12, 10)).save(folder / "train" / "elm" / "odd.png")
    with pytest.raises(DatasetError, match=r"odd\.png has 12 x 10 pixels, .*give resolution_px"):
        load_dataset("mine", folder)
    assert load_dataset("mine", folder, resolution_px=8).shape == (3, 8, 8)


def test_images_of_more_than_eight_bits_are_refused(folder):
    deep = Image.fromarray(np.full((9, 9), 40_000, np.uint16))
    deep.save(folder / "train" / "elm" / "deep.png")
    with pytest.raises(DatasetError, match=r"deep\.png has more than 8 bits"):
        load_dataset("mine", folder)


def test_class_folders_that_do_not_match_are_refused(folder):
    (folder / "test" / "elm").rename(folder / "test" / "yew")
    with pytest.raises(DatasetError, match=r"test.yew has no counterpart in .*train"):
        load_dataset("mine", folder)
    (folder / "test" / "yew").rename(folder / "test" / "elm")
    (folder / "train" / "oak").mkdir()
    with pytest.raises(DatasetError, match=r"oak has no images"):
        load_dataset("mine", folder)


def test_folders_that_are_no_data_set_are_refused(make, folder, tmp_path):
    with pytest.raises(DatasetError, match="elm has no folders"):
        load_dataset("mine", folder / "train" / "elm")
    one = make(n_classes=1, side_px=9).folders(tmp_path / "one", test=False)
    with pytest.raises(DatasetError, match="every training image has the label 0"):
        load_dataset("mine", one)
    few = make(n_classes=2, per_class=(1, 1), side_px=9).folders(tmp_path / "few", test=False)
    with pytest.raises(DatasetError, match=r"few has no test side, and holding out"):
        load_dataset("mine", few)


def test_only_folders_are_resized(make, cifar10_forms, tmp_path):
    for name, root in (("cifar10", cifar10_forms["binary"]), ("mine", cifar10_forms["npz"])):
        with pytest.raises(DatasetError, match="resolution_px resizes a folder of images"):
            load_dataset(name, root, resolution_px=16)


def test_a_channel_of_one_value_is_only_centred(make, tmp_path):
    written = make(n_classes=2)
    written.x_train[..., 2] = written.x_test[..., 2] = 7
    data = load_dataset("mine", written.npz(tmp_path / "mine.npz"))
    assert (data.mean[2], data.std[2]) == (7.0, 1.0)
    assert (data.plain_batch(0, 0, 4).images[:, 2] == 0.0).all()
