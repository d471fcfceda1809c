"""The artifact store: files by the sha256 of their content, over fsspec."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.db.base import utc_now
from service.errors import NotFoundError

_PIECE_BYTES = 2**20
_YOUNG = timedelta(minutes=10)
"""A file that was stored so lately is not written again when its content is put once more; an
older one is, so that its age tells when somebody last wanted it kept."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the store.

    Attributes:
        sha256: None while it is being written, or when its writer was killed.
        changed_at: when its content was last stored; None where the file system does not say.
    """

    path: str
    sha256: str | None
    n_bytes: int
    changed_at: datetime | None


class Incoming:
    """A file on its way into the store; nobody finds it before `ArtifactStore.writing` ends well.

    Attributes:
        size_bytes: of what was written so far.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, piece: bytes) -> None:
        """Append to it."""
        self._file.write(piece)
        self._digest.update(piece)
        self.size_bytes += len(piece)

    @property
    def sha256(self) -> str:
        """Of what was written so far, hexadecimal."""
        return self._digest.hexdigest()


class ArtifactStore:
    """Write once, read many; `file://` by default, any fsspec URL in a deployment."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def put(self, content: bytes) -> str:
        """Store `content` durably and return its hexadecimal sha256; storing twice is harmless."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self._is_young(self._path(sha256)):
            with self.writing() as incoming:
                incoming.write(content)
        return sha256

    @contextmanager
    def writing(self) -> Iterator[Incoming]:
        """A file of any size, taken in piece by piece; stored durably when the block ends.

        A block that raises leaves nothing; a process that is killed in it leaves a file in
        `incoming` that `tailor admin gc` removes.
        """
        partial = f"{self._incoming}/{uuid.uuid4().hex}"
        self._fs.makedirs(self._incoming, exist_ok=True)
        try:
            with self._fs.open(partial, "wb") as file:
                incoming = Incoming(file)
                yield incoming
                file.flush()
                if hasattr(file, "fileno"):
                    os.fsync(file.fileno())
            path = self._path(incoming.sha256)
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._fs.mv(partial, path)  # in the place of the same content, if it was there
        except BaseException:
            self.delete(partial)
            raise

    def get(self, sha256: str) -> bytes:
        """The content of that hash.

        Raises:
            NotFoundError: nothing is stored under it.
        """
        with self.open(sha256) as file:
            return file.read()

    def open(self, sha256: str) -> BinaryIO:
        """The content of that hash, to be read piece by piece and closed.

        Raises:
            NotFoundError: nothing is stored under it.
        """
        try:
            file: BinaryIO = self._fs.open(self._path(sha256), "rb")
        except FileNotFoundError:
            raise NotFoundError(f"no artifact has sha256 {sha256}") from None
        return file

    def digest(self, sha256: str) -> str:
        """The hash that the content stored under that hash really has.

        Raises:
            NotFoundError: nothing is stored under it.
        """
        digest = hashlib.sha256()
        with self.open(sha256) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def has(self, sha256: str) -> bool:
        """Whether something is stored under that hash."""
        return bool(self._fs.exists(self._path(sha256)))

    def copy_out(self, sha256: str, to: Path) -> None:
        """Copy a file to a new local path; as a link where that can be, for files never change.

        Raises:
            NotFoundError: nothing is stored under that hash.
        """
        if isinstance(self._fs, LocalFileSystem):
            with suppress(OSError):  # another file system, or none with links
                os.link(self._path(sha256), to)
                return
        with self.open(sha256) as file, to.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    def stored(self) -> Iterator[StoredFile]:
        """Every file, also those that are still being written."""
        if self._fs.exists(self._root):
            for _, _, files in self._fs.walk(self._root, detail=True):
                yield from (_stored(entry) for entry in files.values())

    def look(self, path: str) -> StoredFile | None:
        """The file at a path of `stored`, as it is now; None when it is gone."""
        try:
            return _stored(self._fs.info(path))
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        """Delete the file at a path of `stored`; harmless when it is gone."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def check(self) -> None:
        """Write, read and delete a file; raises what the storage raises when it cannot."""
        path = f"{self._incoming}/check-{uuid.uuid4().hex}"
        self._fs.makedirs(self._incoming, exist_ok=True)
        try:
            self._fs.pipe_file(path, b"check")
            if self._fs.cat_file(path) != b"check":
                raise OSError("the artifact store gave back other bytes than it was given")
        finally:
            self.delete(path)

    def _is_young(self, path: str) -> bool:
        """Whether it is there, and so young that nothing removes it soon."""
        file = self.look(path)
        return (
            file is not None
            and file.changed_at is not None
            and (utc_now() - file.changed_at < _YOUNG)
        )

    @property
    def _incoming(self) -> str:
        return f"{self._root}/incoming"

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"


def _stored(entry: dict[str, Any]) -> StoredFile:
    path = str(entry["name"])
    name = path.rsplit("/", 1)[-1]
    return StoredFile(
        path=path,
        sha256=name if re.fullmatch("[0-9a-f]{64}", name) else None,
        n_bytes=int(entry["size"] or 0),
        changed_at=_changed_at(entry),
    )


def _changed_at(entry: dict[str, Any]) -> datetime | None:
    """When it was written; file systems of fsspec tell it in their own ways, or not."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None
