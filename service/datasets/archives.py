"""Archives and `.npz` files of strangers: looked through before anything of them is believed.

`unpack` and `check_npz` refuse what is a trap (bombs, paths out of the folder, links, names that
fall together on other file systems) and name the member at fault. Both read member by member.
"""

import gzip
import io
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import IO, Literal

import numpy as np

from search_core.data.catalogue import IMAGE_SUFFIXES
from search_core.errors import DatasetError

Form = Literal["npz", "zip", "tar.gz"]

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"

MOST_ARRAYS = 16
_MOST_DIMENSIONS = 4
_MOST_DEPTH = 12
_LONGEST_NAME = 255
_MOST_RATIO = 100
_FREE_BYTES = 64 * 2**20  # below, nothing unpacked is a bomb, however small it was packed
_PIECE_BYTES = 2**20
_MOST_PADDING = 64 * 2**20
_DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the readers of the standard library raise for files that are damaged or forged."""


@dataclass(frozen=True)
class Limits:
    """How much may come out of a file.

    Attributes:
        most_bytes: unpacked, all together.
        most_files: members, whatever they are.
    """

    most_bytes: int
    most_files: int


@dataclass(frozen=True)
class _Member:
    """What an archive says of one of its entries."""

    name: str
    size_bytes: int
    is_folder: bool


def container_of(head: bytes) -> Literal["zip", "tar.gz"] | None:
    """The container that a file with these first bytes is; `.npz` is a zip; None: neither."""
    if head.startswith(_ZIP):
        return "zip"
    return "tar.gz" if head.startswith(_GZIP) else None


def form_of(file: Path) -> Form:
    """What the file is: an `.npz` is a zip of `.npy` arrays only.

    Raises:
        DatasetError: it is neither, or damaged.
    """
    with file.open("rb") as opened:
        container = container_of(opened.read(4))
    if container is None:
        raise DatasetError("the file is no .npz, .zip or .tar.gz")
    if container == "zip":
        with _opened_zip(file) as archive:
            names = [info.filename for info in archive.infolist()]
        return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
    return "tar.gz"


# -- .npz ------------------------------------------------------------------------------


def check_npz(file: Path, limits: Limits) -> None:
    """Hold the headers of all arrays against the limits and the members' sizes; read none.

    Raises:
        DatasetError: naming the array at fault.
    """
    with _opened_zip(file) as archive:
        infos = archive.infolist()
        if len(infos) > MOST_ARRAYS:
            raise DatasetError(f"the file holds {len(infos)} arrays, more than {MOST_ARRAYS}")
        names = _Names()
        for info in infos:
            names.add(_Member(info.filename, info.file_size, is_folder=False))
            _check_zip_entry(info)
        _check_ratio(sum(info.file_size for info in infos), file.stat().st_size)
        _check_total(sum(_array_bytes(archive, info) for info in infos), limits)


def _array_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """What the array of a member takes, as its header says and its size confirms."""
    name = info.filename
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = reader(member)
        except KeyError:
            raise DatasetError(f"{name} is written in a form of .npy that is not read") from None
        except _DAMAGE as error:
            raise DatasetError(f"{name} is no .npy array ({error})") from error
        begins_at = member.tell()
    if dtype.hasobject:
        raise DatasetError(f"{name} holds Python objects, which are never read")
    if len(shape) > _MOST_DIMENSIONS or any(side < 0 for side in shape):
        raise DatasetError(f"{name} has the shape {shape}; (N, H, W, C) are the most dimensions")
    n_bytes = prod(shape) * dtype.itemsize
    if n_bytes != info.file_size - begins_at:
        raise DatasetError(
            f"{name} announces an array of {n_bytes} bytes and has {info.file_size - begins_at}"
        )
    return n_bytes


# -- archives of images ----------------------------------------------------------------


def unpack(file: Path, form: Form, root: Path, limits: Limits) -> Path:
    """Write the images of an archive under the new folder `root`.

    Returns:
        The folder of class folders, or of `train` and `test`: `root`, or what stands in it alone.

    Raises:
        DatasetError: naming the member at fault; `root` is then not to be used.
    """
    root.mkdir()
    names, n_bytes = _Names(), 0
    members = _zip_members(file) if form == "zip" else _tar_members(file)
    for count, (member, content) in enumerate(members, start=1):
        if count > limits.most_files:
            raise DatasetError(f"the archive holds more than {limits.most_files} files")
        path = names.add(member)
        n_bytes += member.size_bytes
        _check_total(n_bytes, limits)
        _check_ratio(n_bytes, file.stat().st_size)
        if not member.is_folder and _is_image(path):
            _write(content, root.joinpath(*path.parts), member)
    return _inner(root)


class _Names:
    """The names of an archive, each of which may come once, on any file system."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[PurePosixPath, bool]] = {}  # is it a folder?

    def add(self, member: _Member) -> PurePosixPath:
        """The path of a member.

        Raises:
            DatasetError: it leads elsewhere, cannot be a file's name everywhere, or is there.
        """
        name, shown = member.name, ascii(member.name[:100])
        if not name or "\\" in name or not name.isprintable():
            raise DatasetError(f"the name {shown} holds what no file's name should")
        if name.startswith("/") or re.match("[A-Za-z]:", name):
            raise DatasetError(f"{shown} is an absolute path")
        path = PurePosixPath(name)
        if ".." in path.parts:
            raise DatasetError(f"{shown} leads out of the archive")
        if len(path.parts) > _MOST_DEPTH:
            raise DatasetError(f"{shown} lies more than {_MOST_DEPTH} folders deep")
        if any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
            raise DatasetError(f"{shown} has a part of more than {_LONGEST_NAME} bytes")
        for folder in path.parents:
            self._place(folder, is_folder=True, shown=shown)
        self._place(path, is_folder=member.is_folder, shown=shown)
        return path

    def _place(self, path: PurePosixPath, *, is_folder: bool, shown: str) -> None:
        key = unicodedata.normalize("NFC", str(path)).casefold()
        there = self._seen.get(key)
        if there is not None and not (is_folder and there == (path, True)):
            raise DatasetError(f"{shown} falls together with {str(there[0])[:100]!a}")
        self._seen[key] = (path, is_folder)


def _zip_members(file: Path) -> Iterator[tuple[_Member, IO[bytes]]]:
    with _opened_zip(file) as archive:
        if sum(info.compress_size for info in archive.infolist()) > file.stat().st_size:
            raise DatasetError("members of the archive overlap")
        for info in archive.infolist():
            _check_zip_entry(info)
            try:
                content = archive.open(info)
            except _DAMAGE as error:
                raise _damaged(info.filename, error) from error
            with content:
                yield _Member(info.filename, info.file_size, info.is_dir()), content


def _tar_members(file: Path) -> Iterator[tuple[_Member, IO[bytes]]]:
    """Members as they come; read to the end, where a gzip says whether it is whole."""
    try:
        with gzip.open(file) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for info in archive:
                    if not (info.isdir() or info.isfile()) or info.issparse():
                        raise DatasetError(
                            f"{info.name[:100]!a} is neither a file nor a folder; links, "
                            "devices and files with holes are refused"
                        )
                    content = archive.extractfile(info) or io.BytesIO()
                    yield _Member(info.name, info.size, info.isdir()), content
            for _ in range(_MOST_PADDING // _PIECE_BYTES):
                if not stream.read(_PIECE_BYTES):
                    return
            raise DatasetError("something follows the end of the archive")
    except _DAMAGE as error:
        raise _damaged("the archive", error) from error


def _check_zip_entry(info: zipfile.ZipInfo) -> None:
    shown, mode = ascii(info.filename[:100]), info.external_attr >> 16
    if info.flag_bits & 1:
        raise DatasetError(f"{shown} is encrypted")
    if S_IFMT(mode) and not (S_ISREG(mode) or S_ISDIR(mode)):
        raise DatasetError(f"{shown} is neither a file nor a folder; links and devices are refused")


def _check_ratio(n_bytes: int, packed_bytes: int) -> None:
    if n_bytes > max(_FREE_BYTES, _MOST_RATIO * packed_bytes):
        raise DatasetError(
            f"the file unpacks to more than {_MOST_RATIO} times its size, as no images do"
        )


def _check_total(n_bytes: int, limits: Limits) -> None:
    if n_bytes > limits.most_bytes:
        raise DatasetError(
            f"the file unpacks to {n_bytes} bytes and more; at most {limits.most_bytes} are taken"
        )


def _is_image(path: PurePosixPath) -> bool:
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden


def _write(content: IO[bytes], to: Path, member: _Member) -> None:
    """Write as many bytes as were announced; `zipfile` and `tarfile` give no more."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        while True:
            try:
                piece = content.read(_PIECE_BYTES)
            except _DAMAGE as error:
                raise _damaged(member.name, error) from error
            if not piece:
                return
            file.write(piece)


def _inner(root: Path) -> Path:
    """`root`, or the one folder in it that has the folders of the classes or sides."""
    entries = list(root.iterdir())
    while len(entries) == 1 and any(entry.is_dir() for entry in entries[0].glob("*")):
        root = entries[0]
        entries = list(root.iterdir())
    return root


@contextmanager
def _opened_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise _damaged("the file", error) from error
    with archive:
        yield archive


def _damaged(what: str, error: Exception) -> DatasetError:
    return DatasetError(f"{what[:100]} is damaged, or not what its name says ({error})")
