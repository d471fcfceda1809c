"""Uploads on a worker's own disk: fetched and unpacked once, whoever is killed meanwhile."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from search_core.errors import DatasetError
from service.artifacts import ArtifactStore
from service.datasets.archives import Form, Limits, unpack
from service.settings import Settings

_PIECE_BYTES = 2**20
_FILE, _IMAGES = "upload.npz", "images"


def fetch(artifacts: ArtifactStore, sha256: str, to: Path) -> None:
    """Write the artifact to a new file.

    Raises:
        NotFoundError: nothing is stored under it.
        DatasetError: what is stored is something else.
    """
    digest = hashlib.sha256()
    with artifacts.open(sha256) as stored, to.open("wb") as file:
        while piece := stored.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != sha256:
        raise DatasetError(
            f"artifact {sha256} is damaged: its content has the SHA-256 {digest.hexdigest()}; "
            "restore it from a backup, or delete the data set and upload it again"
        )


def materialised(settings: Settings, artifacts: ArtifactStore, sha256: str, form: Form) -> Path:
    """The `.npz` file, or the folder of images, of an upload that was checked.

    Whoever comes first makes it, and the others wait; what a killed process has begun is
    begun anew.

    Raises:
        NotFoundError: the artifact is gone.
        DatasetError: it is damaged.
    """
    cache = settings.home.resolve() / "dataset-cache"
    cache.mkdir(parents=True, exist_ok=True)
    whole, partial = cache / sha256, cache / f"{sha256}.partial"
    with _locked(cache / f"{sha256}.lock"):
        if not whole.exists():
            rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _make(settings, artifacts, sha256, form, partial)
            os.sync()  # else a power cut could leave the name of what was never written
            partial.rename(whole)
    if form == "npz":
        return whole / _FILE
    return whole / (whole / "root").read_text(encoding="utf-8")


def _make(
    settings: Settings, artifacts: ArtifactStore, sha256: str, form: Form, folder: Path
) -> None:
    packed = folder / _FILE
    fetch(artifacts, sha256, packed)
    if form != "npz":
        limits = Limits(settings.max_dataset_unpacked_bytes, settings.max_dataset_files)
        root = unpack(packed, form, folder / _IMAGES, limits)
        (folder / "root").write_text(str(root.relative_to(folder)), encoding="utf-8")
        packed.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
