"""Files of strangers, as the check sees them; the process around it is in test_datasets.py."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from search_core.data.load import load_dataset
from search_core.errors import DatasetError
from service.datasets.archives import Limits, container_of, form_of, unpack
from service.datasets.child import look

MIB = 2**20


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """What the check says of an upload: `seen(content)`; it works in `tmp_path`."""

    def look_at(content: bytes, most_bytes: int = 64 * MIB, most_files: int = 1000, **asked):
        upload = tmp_path / "upload"
        upload.write_bytes(content)
        work = tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        request = {
            "name": "mine",
            "source": "upload",
            "builtin": "",
            "place": str(upload),
            "resize_px": None,
            "most_bytes": most_bytes,
            "most_files": most_files,
        }
        return look(request | asked)

    return look_at


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    """A member of a zip with a mode of Unix."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def special(name: str, kind: bytes, **attributes: object) -> tarfile.TarInfo:
    """A member of a tar that is no file."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def announcing(shape: str) -> bytes:
    """The head of an array of this shape, without the array."""
    text = f"{{'descr':'|u1','fortran_order':False,'shape':{shape},}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def overlapping(f) -> bytes:
    """A zip whose directory gives one member a hundred names."""
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("daisy/0.png", noise)
        (info,) = archive.infolist()
        for i in range(100):
            copy = zipfile.ZipInfo(f"daisy/{i + 1}.png")
            for of in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, of, getattr(info, of))
            archive.filelist.append(copy)
    return file.getvalue()


def encrypted(f) -> bytes:
    """A zip whose directory says that its member is encrypted."""
    content = bytearray(f.zipped(("daisy/a.png", f.png())))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


ARRAYS = {
    "of objects": (
        lambda f: f.npz(images=np.array([print, len]), labels=np.arange(2)),
        "images.npy holds Python objects, which are never read",
    ),
    "NaN": (lambda f: f.npz(images=np.full((4, 2, 2), np.nan), labels=np.arange(4)), "NaN"),
    "floats": (lambda f: f.npz(images=np.zeros((4, 2, 2)), labels=np.arange(4)), "float64"),
    "negative label": (
        lambda f: f.npz(**f.arrays() | {"y_test": np.full(30, -1)}),
        "mine.npz: a test image has the label -1",
    ),
    "labels with NaN": (
        lambda f: f.npz(**f.arrays() | {"y_train": np.full(60, np.nan)}),
        "mine.npz, training side: the labels contain NaN",
    ),
    "lengths": (lambda f: f.npz(**f.arrays() | {"y_train": np.arange(59)}), "60 images, but 59"),
    "shapes": (lambda f: f.npz(**f.arrays() | {"x_test": f.arrays(side=9)["x_test"]}), "(9, 9, 3)"),
    "one class": (lambda f: f.npz(**f.arrays(n_classes=1)), "at least two classes"),
    "other arrays": (lambda f: f.npz(a=np.zeros(3)), "has the arrays a"),
    "too many": (lambda f: f.npz(**{f"a{i}": np.zeros(1) for i in range(17)}), "17 arrays"),
    "dimensions": (
        lambda f: f.npz(images=np.zeros((1,) * 5), labels=[0]),
        "images.npy has",
    ),
    "forged size": (
        lambda f: f.zipped(("images.npy", announcing("(9, 9999999, 9)"))),
        "images.npy announces an array of 809999919 bytes and has 0",
    ),
    "negative size": (
        lambda f: f.zipped(("images.npy", announcing("(-9,)"))),
        "images.npy has",
    ),
    "a program for a head": (
        lambda f: f.zipped(("images.npy", announcing("__import__('os').getcwd()"))),
        "images.npy is no .npy array",
    ),
    "no array": (lambda f: f.zipped(("images.npy", b"nothing")), "images.npy is no .npy array"),
    "too large images": (
        lambda f: f.npz(images=np.zeros((10, 1025, 1025), np.uint8), labels=[0, 1] * 5),
        "1025 x 1025",
    ),
    "cut off": (lambda f: f.npz()[:-30], "damaged"),
    "a changed byte": (lambda f: changed(f.npz()), "mine.npz cannot be read"),
}


def changed(content: bytes) -> bytes:
    """The file with a byte of its first member's data changed."""
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


ARCHIVES = {
    "absolute": (lambda f: f.zipped(("/etc/a.png", f.png())), "'/etc/a.png' is an absolute path"),
    "a drive": (lambda f: f.zipped(("C:a/b.png", f.png())), "'C:a/b.png' is an absolute path"),
    "upwards": (lambda f: f.tarred(("a/../../b.png", f.png())), "leads out of the archive"),
    "backslash": (lambda f: f.tarred(("a\\..\\b.png", f.png())), "no file's name should"),
    "newline": (lambda f: f.tarred(("a/b\nc.png", f.png())), r"'a/b\nc.png' holds"),
    "not text": (lambda f: f.tarred(("a/\udcff.png", f.png())), r"'a/\udcff.png' holds"),
    "a link": (
        lambda f: f.tarred((special("a/b.png", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
        "'a/b.png' is neither a file nor a folder",
    ),
    "a hard link": (
        lambda f: f.tarred((special("a/b.png", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
        "'a/b.png' is neither a file nor a folder",
    ),
    "a link in a zip": (
        lambda f: f.zipped((entry("a/b.png", 0o120777), b"/etc/passwd")),
        "'a/b.png' is neither a file nor a folder",
    ),
    "a device": (
        lambda f: f.tarred((special("a/b.png", tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
        "'a/b.png' is neither a file nor a folder",
    ),
    "case": (
        lambda f: f.zipped(("Elm/a.png", f.png()), ("elm/b.png", f.png())),
        "'elm/b.png' falls together with 'Elm'",
    ),
    "accents": (
        lambda f: f.zipped(("n\u00e9e/a.png", f.png()), ("ne\u0301e/b.png", f.png())),
        "falls together with 'n\\xe9e'",
    ),
    "twice": (lambda f: f.tarred(("a/b.png", f.png()), ("a/b.png", f.png())), "falls together"),
    "a file as a folder": (
        lambda f: f.tarred(("a.png", f.png()), ("a.png/b.png", f.png())),
        "'a.png/b.png' falls together with 'a.png'",
    ),
    "deep": (lambda f: f.zipped(("d/" * 13 + "a.png", f.png())), "more than 12 folders deep"),
    "a long name": (lambda f: f.tarred(("d" * 300 + "/a.png", f.png())), "255 bytes"),
    "a bomb": (lambda f: f.zipped(("a/b.png", bytes(65 * MIB))), "67108864 are taken"),
    "a tar bomb": (lambda f: f.tarred(("a/b.png", bytes(65 * MIB))), "67108864 are taken"),
    "a bomb of other files": (lambda f: f.tarred(("a/b.txt", bytes(65 * MIB))), "67108864 are"),
    "overlapping": (overlapping, "overlap"),
    "encrypted": (encrypted, "'daisy/a.png' is encrypted"),
    "many files": (lambda f: f.zipped(*((f"a/{i}.txt", b"") for i in range(1001))), "1000 files"),
    "cut off": (lambda f: f.tarred(*f.images().items())[:-9], "the archive is damaged"),
    "no tar": (lambda _: gzip.compress(b"no archive" * 100), "the archive is damaged"),
    "two archives": (
        lambda f: f.tarred(*f.images().items()) + gzip.compress(bytes(65 * MIB)),
        "something follows the end of the archive",
    ),
    "no images": (lambda f: f.zipped(("readme.txt", b"nothing else")), "mine has no folders"),
    "an empty class": (
        lambda f: f.zipped(*f.images().items(), ("elm/readme.txt", b"")),
        None,  # a folder without images is no class
    ),
    "no image": (
        lambda f: f.zipped(*f.images().items(), ("daisy/x.png", b"text")),
        "mine/daisy/x.png cannot be read as an image",
    ),
    "half an image": (
        lambda f: f.zipped(*f.images().items(), ("daisy/x.png", f.png()[:45])),
        "mine/daisy/x.png cannot be read as an image",
    ),
    "a program of PostScript": (
        lambda f: f.zipped(*f.images().items(), ("daisy/x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")),
        "mine/daisy/x.png cannot be read as an image",
    ),
    "one image of a class": (
        lambda f: f.zipped(*f.images().items(), ("elm/x.png", f.png())),
        "mine has no test side",
    ),
    "other sizes": (
        lambda f: f.zipped(*f.images().items(), ("daisy/x.png", f.png(7))),
        "give resolution_px to resize",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_npz_that_is_no_data_set_is_rejected_saying_why(case, files, seen):
    build, said = ARRAYS[case]
    assert said in seen(build(files)).get("rejected", "")


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_a_trap_or_no_data_set_is_rejected(case, files, seen, tmp_path):
    build, said = ARCHIVES[case]
    found = seen(build(files))
    if said is None:
        assert len(found["classes"]) == 2
    else:
        assert said in found.get("rejected", ""), found
        assert str(tmp_path) not in found["rejected"]
    outside = {path for path in tmp_path.iterdir() if path.name not in ("upload", "work")}
    assert outside == set()


def test_a_bomb_is_told_by_its_ratio_where_it_would_fit(files, seen):
    found = seen(files.zipped(("a/b.png", bytes(80 * MIB))), most_bytes=200 * MIB)
    assert "more than 100 times its size" in found["rejected"]


@pytest.mark.parametrize("pack", ["zipped", "tarred"])
@pytest.mark.parametrize("top", ["", "./flowers/"])
def test_an_archive_of_folders_is_read_as_the_folder_would_be(files, seen, tmp_path, pack, top):
    other = {f"{top}README.txt": b"flowers", "__MACOSX/elm/a.png": b"", f"{top}.git/a/b.png": b""}
    found = seen(getattr(files, pack)(*files.images(top).items(), *other.items()))
    for file, content in files.images("flowers/").items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    data = load_dataset("mine", tmp_path / "flowers")
    assert found["digest"] == data.digest
    assert found["mean"] == list(data.mean)
    assert found["classes"] == [
        {"name": "daisy", "n_train": 9, "n_test": 3},
        {"name": "tulip", "n_train": 10, "n_test": 2},
    ]


def test_sides_in_an_archive_are_kept(files, seen):
    sides = files.images("train/") | {"test/tulip/a.png": files.png()}
    found = seen(files.zipped(*sides.items()))
    assert (found["n_train"], found["n_test"]) == (24, 1)


def test_an_npz_is_read_whole(files, seen, tmp_path):
    found = seen(files.npz())
    (tmp_path / "mine.npz").write_bytes(files.npz())
    assert found["digest"] == load_dataset("mine", tmp_path / "mine.npz").digest
    assert (found["form"], found["channels"], found["resolution_px"]) == ("npz", 3, 8)
    assert found["classes"][2] == {"name": "2", "n_train": 20, "n_test": 10}


def test_arrays_over_the_limit_are_not_read(files, seen):
    content = files.npz(images=np.zeros((2, 800, 800), np.uint8), labels=[0, 1])
    assert "1280016 bytes and more; at most 1048576" in seen(content, most_bytes=MIB)["rejected"]


def test_arrays_are_not_resized(files, seen):
    assert "not arrays" in seen(files.npz(), resize_px=4)["rejected"]


@pytest.mark.parametrize("head", [b"", b"GIF89a", b"PK\x05\x06"])
def test_other_files_are_told_by_their_first_bytes(head, tmp_path):
    assert container_of(head) is None
    (tmp_path / "upload").write_bytes(head)
    with pytest.raises(DatasetError, match=r"no \.npz, \.zip or \.tar\.gz"):
        form_of(tmp_path / "upload")


def test_only_images_are_written(files, tmp_path):
    content = files.zipped(("a/b.png", files.png()), ("a/b.sh", b"#!"), ("a/.c.png", files.png()))
    (tmp_path / "upload").write_bytes(content)
    root = unpack(tmp_path / "upload", "zip", tmp_path / "root", Limits(MIB, 10))
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["b.png"]


def test_a_known_set_whose_files_are_missing_says_how_to_get_them(seen, tmp_path):
    asked = {"source": "builtin", "builtin": "cifar10", "place": str(tmp_path / "cifar10")}
    assert "to get it: curl" in seen(b"", **asked)["rejected"]
