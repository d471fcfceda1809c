"""The artifact store: files by the sha256 of their content, over fsspec."""

import hashlib
import os
import uuid

import fsspec

from service.errors import NotFoundError


class ArtifactStore:
    """Write once, read many; `file://` by default, any fsspec URL in a deployment."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def put(self, content: bytes) -> str:
        """Store `content` durably and return its hexadecimal sha256; storing twice is harmless."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._path(sha256)
        if self._fs.exists(path):
            return sha256
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        with self._fs.open(partial, "wb") as file:
            file.write(content)
            file.flush()
            if hasattr(file, "fileno"):
                os.fsync(file.fileno())
        self._fs.mv(partial, path)
        return sha256

    def get(self, sha256: str) -> bytes:
        """The content of that hash.

        Raises:
            NotFoundError: nothing is stored under it.
        """
        try:
            content: bytes = self._fs.cat_file(self._path(sha256))
        except FileNotFoundError:
            raise NotFoundError(f"no artifact has sha256 {sha256}") from None
        return content

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"
