"""Where attempts keep what the next one goes on from: a folder a search, on any file system."""

import tempfile
from pathlib import Path

import fsspec

from search_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint


class CheckpointFolder:
    """The checkpoints of one search under their names.

    Workers on several machines need a `url` that all of them reach, a shared volume or a
    bucket; then whichever takes a search over goes on where the last one stood.
    """

    def __init__(self, url: str, search_id: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._folder = f"{root}/{search_id}"
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else ())

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Keep `checkpoint`, replacing the one before as a whole or not at all."""
        if self._local:
            return save_checkpoint(checkpoint, Path(self._folder) / name)
        with tempfile.TemporaryDirectory(prefix="tailor-") as scratch:
            path = Path(scratch) / name
            save_checkpoint(checkpoint, path)
            self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.put_file(str(path), f"{self._folder}/{name}")  # objects appear whole
        return None

    def load(self, name: str) -> Checkpoint | None:
        """The checkpoint of that name, None where there is none.

        Raises:
            CheckpointError: the file is damaged.
        """
        content = self.content(name)
        return None if content is None else read_checkpoint(content)

    def content(self, name: str) -> bytes | None:
        """The file of that name as it is."""
        try:
            content: bytes = self._fs.cat_file(f"{self._folder}/{name}")
        except FileNotFoundError:
            return None
        return content

    def remove(self) -> None:
        """Forget all of them."""
        if self._fs.exists(self._folder):
            self._fs.rm(self._folder, recursive=True)


def read_checkpoint(content: bytes) -> Checkpoint:
    """A checkpoint from the content of its file, which is never unpickled.

    Raises:
        CheckpointError: it is damaged, or something else.
    """
    with tempfile.TemporaryDirectory(prefix="tailor-") as scratch:
        path = Path(scratch) / "checkpoint.pt"
        path.write_bytes(content)
        return load_checkpoint(path)
