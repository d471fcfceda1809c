"""Files on their way to the API: read piece by piece, never whole."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_PIECE_BYTES = 2**20


class FileBody:
    """A file as the body of a request; it can be sent again from its beginning.

    Args:
        on_progress: called with how many bytes have been given away.
    """

    def __init__(self, path: Path, on_progress: Callable[[int], None] | None = None) -> None:
        self._path = path
        self._on_progress = on_progress or (lambda _: None)
        self.size_bytes = path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        with self._path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
                sent += len(piece)
                self._on_progress(sent)

    def headers(self) -> dict[str, str]:
        """Length and checksum, for which the file is read once."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self.size_bytes),
            "X-Content-SHA256": digest.hexdigest(),
        }


def name_of(path: Path) -> str:
    """What a file may be called as a data set: ``My Flowers.tar.gz`` is ``my-flowers``."""
    stem = re.sub(r"\.(npz|zip|tgz|tar\.gz)$", "", path.name, flags=re.IGNORECASE).lower()
    return re.sub("[^a-z0-9._-]+", "-", stem).strip("-._")[:64]
