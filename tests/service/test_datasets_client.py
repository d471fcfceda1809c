"""Data sets from Python and from a shell, with a worker that checks them."""

import os
import signal
import subprocess
import sys

import pytest

from service.client.client import Client
from service.client.errors import ApiError, DatasetTimeoutError
from service.client.files import FileBody, name_of
from service.datasets.models import DatasetRow
from service.db.base import utc_now
from service.jobs import repository as jobs


@pytest.fixture
def client(api):
    with Client(api.url, api.admin_key) as made:
        yield made


def settle(api, dataset_id: str, **found: object) -> None:
    """What a worker's check would write."""
    with api.database.transaction() as session:
        row = session.get_one(DatasetRow, dataset_id)
        row.checked_at = utc_now()
        for name, value in found.items():
            setattr(row, name, value)
        jobs.cancel_queued(session, dataset_id)


FACTS = {
    "form": "npz",
    "channels": 3,
    "resolution_px": 8,
    "n_classes": 22,
    "n_train": 60,
    "n_test": 30,
    "mean": [1.0] * 3,
    "std": [1.0] * 3,
    "digest": "0" * 64,
    "classes": [{"name": f"class {i}", "n_train": 3, "n_test": 1} for i in range(22)],
}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My Flowers.tar.gz", "my-flowers"),
        ("a_b.NPZ", "a_b"),
        ("x.tgz", "x"),
        (".hidden.zip", "hidden"),
        ("v1.2.zip", "v1.2"),
    ],
)
def test_a_file_is_called_by_its_name(file, name, tmp_path):
    assert name_of(tmp_path / file) == name


def test_a_file_is_given_in_pieces_and_can_be_sent_again(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(bytes(range(256)) * 10_000)
    sent: list[int] = []
    body = FileBody(path, sent.append)
    assert b"".join(body) == b"".join(body) == path.read_bytes()
    assert max(len(piece) for piece in body) == 2**20
    assert sent[:3] == [2**20, 2 * 2**20, 2_560_000]
    assert body.headers()["Content-Length"] == "2560000"


def test_a_data_set_from_upload_to_deletion(client, api, files, tmp_path):
    (tmp_path / "Shades.npz").write_bytes(files.npz())
    sent: list[int] = []
    made = client.upload_dataset(tmp_path / "Shades.npz", on_progress=sent.append)
    assert (made.name, made.status) == ("shades", "checking")
    assert sent[-1] == made.size_bytes
    with pytest.raises(DatasetTimeoutError, match="does a worker run"):
        client.wait_for_dataset(made.id, 0)
    settle(api, made.id, status="ready", facts=FACTS)
    found = client.wait_for_dataset(made.id, 10)
    assert found.classes is not None
    assert found.classes[21].name == "class 21"
    assert [d.name for d in client.datasets()][:1] == ["shades"]
    client.delete_dataset("shades")
    with pytest.raises(ApiError, match="no data set of this account"):
        client.dataset("shades")


def test_the_shell_uploads_shows_lists_and_deletes(tailor, tailor_json, api, files, tmp_path):
    (tmp_path / "elms.zip").write_bytes(files.zipped(*files.images().items()))
    made = tailor_json("datasets", "upload", tmp_path / "elms.zip", "--no-wait")
    assert (made["name"], made["status"]) == ("elms", "checking")
    late = tailor("datasets", "upload", tmp_path / "elms.zip", "--timeout", "0")
    assert late.status == 2
    assert "tailor datasets show elms" in " ".join(late.err.split())
    settle(api, made["id"], status="rejected", reason="elms/a.png is no image")
    assert tailor("datasets", "show", "elms").status == 0
    settle(api, made["id"], status="ready", reason=None, facts=FACTS)
    shown = tailor("datasets", "show", "elms").out
    assert "3 x 8 x 8" in shown
    assert "micro" in shown
    assert "and 2 more" in shown
    listed = tailor("datasets", "list").out
    assert "elms" in listed
    assert "cifar10" in listed
    assert "elms" in [d["name"] for d in tailor_json("datasets", "list")]
    assert tailor("datasets", "delete", "elms").status == 0
    assert tailor("datasets", "show", "elms").status == 2


def test_the_shell_registers_a_known_set(tailor, tailor_json, api):
    made = tailor_json("datasets", "register", "digits", "--builtin", "digits", "--no-wait")
    assert made["source"] == "builtin"
    settle(api, made["id"], status="rejected", reason="no files")
    again = tailor("datasets", "register", "digits", "--builtin", "digits", "--timeout", "0")
    assert again.status == 2  # it is checked once more
    settle(api, made["id"], status="rejected", reason="no files")
    refused = tailor("datasets", "register", "other", "--path", "/etc")
    assert refused.status == 2
    assert "TAILOR_DATASET_ROOTS" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["attempt", "worker"])
def test_a_check_survives_the_death_of_whoever_does_it(serve, files, eventually, victim):
    """A worker checks a large archive, and is killed in the middle of it."""
    import psutil

    members = [
        (f"{side}/{name}/{i}.png", files.png(64, value=i % 250))
        for side in ("train", "test")
        for name in ("daisy", "tulip")
        for i in range(3000)
    ]
    with serve(job_lease_seconds=3.0) as api, Client(api.url, api.admin_key) as client:
        environment = {
            **os.environ,
            "TAILOR_HOME": str(api.settings.home),
            "TAILOR_JOB_LEASE_SECONDS": "3",
            "TAILOR_CALIBRATE": "false",
        }

        def start() -> subprocess.Popen:
            return subprocess.Popen(
                [sys.executable, "-m", "service.cli", "worker"], env=environment
            )

        def looking() -> list[psutil.Process]:
            tree = psutil.Process(worker.pid).children(recursive=True)
            return [p for p in tree if "service.datasets.child" in p.cmdline()]

        (api.settings.home / "large.zip").write_bytes(files.zipped(*members))
        made = client.upload_dataset(api.settings.home / "large.zip")
        worker = start()
        try:
            (child,) = eventually(looking, "nobody checks")
            attempt = child.parent()
            if victim == "worker":
                os.kill(worker.pid, signal.SIGKILL)
                worker.wait()
            else:
                os.kill(attempt.pid, signal.SIGKILL)
            eventually(lambda: not child.is_running(), "the process outlives its parent")
            assert client.dataset(made.id).status == "checking"
            if victim == "worker":
                worker = start()
            found = client.wait_for_dataset(made.id, 120)
        finally:
            worker.terminate()
            worker.wait(60)
        assert (found.status, found.n_train, found.n_test) == ("ready", 6000, 6000)
        assert list((api.settings.home / "dataset-checks").iterdir()) == []


@pytest.mark.slow
def test_an_api_killed_in_an_upload_leaves_no_data_set(tmp_path, files, eventually, connect):
    """Half of a file is sent, then the process dies."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "TAILOR_HOME": str(tmp_path), "TAILOR_PORT": str(port)}

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "service.cli", "api"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def key_of(process: subprocess.Popen) -> str:
        lines = iter(process.stdout.readline, "TAILOR_READY=1\n")
        return next((ln.split("=", 1)[1].strip() for ln in lines if "API_KEY=" in ln), "")

    process = start()
    try:
        key = key_of(process)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                "POST /v1/datasets/uploads?name=half HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {key}\r\nContent-Length: 9000000\r\n\r\n"
            )
            connection.sendall(head.encode() + b"PK\x03\x04" + bytes(2**22))
            incoming = tmp_path / "artifacts" / "incoming"
            eventually(lambda: incoming.exists() and any(incoming.iterdir()), "nothing arrives")
            process.kill()
            process.wait()
        process.stdout.close()
        process = start()
        key_of(process)
        with Client(f"http://127.0.0.1:{port}", key) as client:
            assert [d.name for d in client.datasets() if d.source != "builtin"] == []
            (tmp_path / "half.npz").write_bytes(files.npz())
            assert client.upload_dataset(tmp_path / "half.npz").status == "checking"
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
