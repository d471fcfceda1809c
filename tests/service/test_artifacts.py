"""The artifact store: content by its hash."""

import hashlib
import threading

import pytest

from service.artifacts import ArtifactStore
from service.errors import NotFoundError


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"weights", bytes(range(256)) * 1000])
def test_what_is_put_is_got_by_its_sha256(store, content):
    sha256 = store.put(content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert store.get(sha256) == content


def test_storing_twice_keeps_one_file(store, tmp_path):
    assert store.put(b"weights") == store.put(b"weights")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_what_was_never_put_is_not_found(store):
    with pytest.raises(NotFoundError, match="0" * 64):
        store.get("0" * 64)


def test_writers_of_the_same_content_do_not_disturb_each_other(store, tmp_path):
    content = b"w" * 2**20
    together = threading.Barrier(4)
    hashes: list[str] = []

    def write() -> None:
        together.wait()
        hashes.append(store.put(content))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(hashes)) == 1
    assert len(hashes) == 4
    assert store.get(hashes[0]) == content
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
