"""Data sets over HTTP: registered, uploaded, checked by a job, searched on, deleted."""

import base64
import hashlib
import socket
import struct
import subprocess
import sys
import threading
import zlib
from itertools import count
from urllib.parse import urlsplit

import pytest

from search_core.data.load import load_dataset
from search_core.errors import DatasetError, SearchInterrupted, UnknownDatasetError
from service.artifacts import ArtifactStore
from service.datasets import child
from service.datasets.cache import materialised
from service.datasets.known import find_dataset
from service.datasets.load import open_dataset
from service.datasets.tasks import check_dataset
from service.errors import InvalidRequestError
from service.jobs import repository as jobs
from service.workers.settling import settle

URGENT = count(10_000)


def folders(files) -> list[tuple[str, bytes]]:
    """Images in class folders, for training and for testing."""
    return [*files.images("train/").items(), *files.images("test/").items()]


def send(api, name: str, content, http=None, **headers: str):
    """The answer to an upload."""
    return (http or api.http).post(
        f"/v1/datasets/uploads?name={name}",
        content=content,
        headers={"Content-Type": "application/octet-stream", **headers},
    )


def read(api, made: dict) -> dict:
    return api.http.get(f"/v1/datasets/{made['id']}").json()


def check(api, made: dict) -> dict:
    """The data set once the attempt that checks it has run."""
    claim, context = claimed(api, made)
    assert claim.kind == "check_dataset"
    check_dataset(context, claim.subject_id)
    return read(api, made)


def claimed(api, made: dict):
    """The job that checks it, and the context of its attempt."""
    with api.database.transaction() as session:  # what other tests have left waits
        jobs.of_subject(session, made["id"]).priority = next(URGENT)
    claim, context = api.claim()
    assert claim.subject_id == made["id"]
    return claim, context


def uploaded(api, name: str, content: bytes) -> dict:
    """The data set of this file, once it is checked."""
    answer = send(api, name, content)
    assert answer.status_code == 201, answer.text
    return check(api, answer.json())


def artifacts(api) -> ArtifactStore:
    return ArtifactStore(api.settings.resolved_artifacts_url)


def facts_of(api, name: str):
    with api.database.reading() as session:
        return find_dataset(session, "tests", name)


def opened(api, name: str):
    """The data set as an attempt opens it."""
    return open_dataset(api.settings, artifacts(api), facts_of(api, name))


def problem(answer, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return answer.json()["detail"]


# -- uploads ---------------------------------------------------------------------------


def test_an_npz_is_taken_in_checked_and_opened(api_on_both, files):
    content = files.npz()
    answer = send(api_on_both, "shades", content)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["status"], made["channels"], made["reason"]) == ("checking", None, None)
    assert answer.headers["Location"] == f"/v1/datasets/{made['id']}"
    with pytest.raises(InvalidRequestError, match="still being checked"):
        facts_of(api_on_both, "shades")
    found = check(api_on_both, made)
    assert found["status"] == "ready", found
    assert (found["channels"], found["resolution_px"], found["n_classes"]) == (3, 8, 3)
    assert (found["n_train"], found["n_test"]) == (60, 30)
    assert found["place"] == hashlib.sha256(content).hexdigest()
    assert {"micro", "nasbench201_n1"} <= set(found["search_spaces"])
    data = opened(api_on_both, "shades")
    assert (data.digest, list(data.mean)) == (found["digest"], found["mean"])
    assert facts_of(api_on_both, made["id"]).name == "shades"


def test_images_of_any_size_are_resized_on_request(api, files):
    content = files.zipped(*folders(files), ("train/daisy/large.png", files.png(40)))
    told = uploaded(api, "uneven", content)
    assert told["status"] == "rejected"
    assert "uneven/train/daisy/large.png has 40 x 40 pixels" in told["reason"]
    with pytest.raises(InvalidRequestError, match="was rejected: uneven/train/daisy"):
        facts_of(api, "uneven")
    answer = api.http.post("/v1/datasets/uploads?name=even&resolution_px=4", content=content)
    found = check(api, answer.json())
    assert (found["status"], found["resolution_px"]) == ("ready", 4)
    assert opened(api, "even").shape == (3, 4, 4)


def test_the_same_file_under_the_same_name_is_the_same_data_set(api, files):
    content = files.npz(**files.arrays(seed=1))
    first = send(api, "twice", content).json()
    again = send(api, "twice", content)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = files.npz(**files.arrays(seed=2))
    assert "choose another name" in problem(send(api, "twice", other), 409, "conflict")
    assert check(api, first)["status"] == "ready"
    assert send(api, "twice", content).json()["status"] == "ready"


def test_a_rejected_file_that_is_sent_again_is_checked_again(api, files):
    content = files.npz(**files.arrays(n_classes=1))
    first = uploaded(api, "hopeless", content)
    assert first["status"] == "rejected"
    again = send(api, "hopeless", content)
    assert (again.status_code, again.json()["status"]) == (200, "checking")
    assert check(api, first)["reason"] == first["reason"]


def test_a_body_that_is_not_what_was_announced_is_refused(api, files):
    content = files.npz(**files.arrays(seed=3))
    sha256 = hashlib.sha256(content).digest()
    wrong = (
        {"X-Content-SHA256": "0" * 64},
        {"X-Content-SHA256": "none"},
        {"Digest": "sha-256=!"},
        {"Digest": "sha-256=" + base64.b64encode(sha256).decode(), "X-Content-SHA256": "0" * 64},
    )
    before = api.stored()
    for headers in wrong:
        problem(send(api, "announced", content, **headers), 400, "bad_request")
    assert api.stored() == before
    right = {
        "X-Content-SHA256": sha256.hex(),
        "Digest": f"unixsum=7,sha-256={base64.b64encode(sha256).decode()}",
    }
    assert send(api, "announced", content, **right).status_code == 201


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("a-text", b"these are no images"),
        ("digits", b"PK\x03\x04"),
        ("Upper", b"PK\x03\x04"),
        ("..", b"PK\x03\x04"),
        ("a%2Fb", b"PK\x03\x04"),
        ("a%00b", b"PK\x03\x04"),
    ],
)
def test_what_is_no_data_set_is_refused_and_leaves_nothing(api, name, content):
    before = api.stored()
    problem(send(api, name, content), 422, "invalid_request")
    assert api.stored() == before


def test_a_file_over_the_limit_is_refused_announced_or_not(serve, files):
    content = files.npz()
    with serve(max_dataset_bytes=len(content) - 1) as api:
        before = api.stored()
        problem(send(api, "large", content), 413, "payload_too_large")
        problem(send(api, "large", iter([content])), 413, "payload_too_large")
        assert api.stored() == before


def test_an_account_stores_no_more_than_its_quota(serve, files):
    first, second = (files.npz(**files.arrays(seed=seed)) for seed in (4, 5))
    with serve(account_dataset_bytes=len(first) + len(second) - 1) as api:
        made = send(api, "first", first).json()
        rows = {**api.stored(), "files": None}
        for body in (second, iter([second])):
            answer = send(api, "second", body)
            problem(answer, 429, "quota_exceeded")
            assert answer.json()["used"] == len(first)
        assert {**api.stored(), "files": None} == rows
        assert api.http.delete(f"/v1/datasets/{made['id']}").status_code == 204
        assert send(api, "second", second).status_code == 201


def test_an_upload_that_breaks_off_leaves_nothing(api, eventually):
    before = api.stored()
    where = urlsplit(api.url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        head = (
            f"POST /v1/datasets/uploads?name=broken HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Authorization: Bearer {api.admin_key}\r\nContent-Length: 9000000\r\n\r\n"
        )
        connection.sendall(head.encode() + b"PK\x03\x04" + bytes(2**21))
        eventually(lambda: api.stored()["files"] > before["files"], "nothing has arrived")
    eventually(lambda: api.stored() == before, "something is left")


# -- the process that checks -----------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that announces so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_never_decoded(api, files):
    bomb = ("train/daisy/bomb.png", png_of(30_000, 30_000))
    found = uploaded(api, "pixels", files.zipped(*folders(files), bomb))
    assert found["status"] == "rejected"
    assert "pixels/train/daisy/bomb.png cannot be read as an image" in found["reason"]
    assert "900000000 pixels" in found["reason"]


def test_a_check_that_takes_too_long_is_given_up(serve, files):
    with serve(dataset_check_minutes=1e-4) as api:
        found = uploaded(api, "slow", files.npz())
        assert (found["status"], found["digest"]) == ("rejected", None)
        assert "takes longer than" in found["reason"]
        assert list((api.settings.home / "dataset-checks").iterdir()) == []


def test_a_worker_that_wants_the_job_back_has_it_at_once(api, files):
    made = send(api, "handed-back", files.npz()).json()
    claim, context = claimed(api, made)
    context._handed_back.set()
    with pytest.raises(SearchInterrupted):
        check_dataset(context, claim.subject_id)
    assert read(api, made)["status"] == "checking"
    assert list((api.settings.home / "dataset-checks").iterdir()) == []
    with api.database.transaction() as session:
        settle(session, jobs.held(session, claim.job_id, claim.fence), "handed_back")


def test_the_process_ends_with_the_attempt_that_started_it(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", child.__name__], stdin=subprocess.PIPE)
    process.stdin.close()  # as when its parent is killed before it has asked
    assert process.wait(60) != 0


def test_a_check_that_no_attempt_can_finish_ends_as_rejected(serve, files):
    with serve(max_attempts=1) as api:
        made = send(api, "fatal", files.npz()).json()
        claim, _ = claimed(api, made)
        with api.database.transaction() as session:
            settle(session, jobs.held(session, claim.job_id, claim.fence), "out_of_memory")
        found = read(api, made)
        assert found["status"] == "rejected"
        assert "out_of_memory" in found["reason"]
        assert send(api, "fatal", files.npz()).json()["status"] == "checking"
        assert check(api, made)["status"] == "ready"


def test_a_data_set_deleted_while_it_is_checked_stays_deleted(api, files):
    made = send(api, "gone", files.npz()).json()
    claim, context = claimed(api, made)
    assert api.http.delete(f"/v1/datasets/{made['id']}").status_code == 204
    check_dataset(context, claim.subject_id)
    assert api.http.get(f"/v1/datasets/{made['id']}").status_code == 404
    with api.database.reading() as session:
        assert jobs.of_subject(session, made["id"]).status == "cancelled"


# -- on a worker's disk ----------------------------------------------------------------


def test_an_upload_is_unpacked_once_and_whoever_is_killed_in_it_leaves_no_half(api, files):
    made = uploaded(api, "cached", files.zipped(*folders(files)))
    arguments = (api.settings, artifacts(api), made["place"], "zip")
    cache = api.settings.home / "dataset-cache"
    partial = cache / f"{made['place']}.partial" / "images" / "train" / "daisy"
    partial.mkdir(parents=True)  # what a killed process has left
    (partial / "0.png").write_bytes(b"half")
    roots: list = []
    threads = [
        threading.Thread(target=lambda: roots.append(materialised(*arguments))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(roots)) == 1
    assert len(roots) == 4
    assert load_dataset("cached", roots[0]).digest == made["digest"]
    assert not (cache / f"{made['place']}.partial").exists()


def test_a_damaged_artifact_is_told_from_a_data_set(api, files):
    made = uploaded(api, "rotten", files.npz(**files.arrays(seed=6)))
    (stored,) = (f for f in artifacts(api).stored() if f.sha256 == made["place"])
    with open(stored.path, "r+b") as file:  # noqa: PTH123 - a path of fsspec
        file.write(b"XX")
    with pytest.raises(DatasetError, match="is damaged: its content has the SHA-256"):
        opened(api, "rotten")
    artifacts(api).delete(stored.path)
    with pytest.raises(DatasetError, match="no artifact has sha256"):
        opened(api, "rotten")


# -- known sets and paths --------------------------------------------------------------


def test_the_known_sets_are_listed_and_can_be_named_unregistered(api):
    listed = {one["name"]: one for one in api.http.get("/v1/datasets").json()["items"]}
    assert {"cifar10", "cifar100", "digits", "fashion_mnist"} <= set(listed)
    assert listed["digits"]["status"] == "ready"
    assert listed["cifar10"]["status"] == "unchecked"
    for key in ("digits", listed["digits"]["id"]):
        found = api.http.get(f"/v1/datasets/{key}").json()
        assert (found["n_train"], found["resolution_px"]) == (1437, 8)
        assert "micro" in found["search_spaces"]
    facts = facts_of(api, "digits")
    assert facts.dataset_id is None
    assert open_dataset(api.settings, artifacts(api), facts).n_train == 1437


def test_an_unknown_name_is_answered_with_what_there_is(api, files):
    made = uploaded(api, "elms", files.npz(**files.arrays(seed=7)))
    assert made["status"] == "ready"
    with pytest.raises(UnknownDatasetError, match=r"'elm'; known: .*elms.*cifar10"):
        facts_of(api, "elm")


def test_a_known_set_is_registered_once_its_files_are_there(api):
    made = api.http.post("/v1/datasets", json={"name": "digits", "builtin": "digits"}).json()
    found = check(api, made)
    assert (found["status"], found["n_train"]) == ("ready", 1437)
    assert sum(one["n_test"] for one in found["classes"]) == 360
    assert opened(api, "digits").n_test == 360
    assert api.http.delete("/v1/datasets/digits").status_code == 204
    assert api.http.get("/v1/datasets/digits").json()["id"] == "builtin_digits"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "a"}, "either builtin"),
        ({"name": "a", "builtin": "digits", "path": "/x"}, "either builtin"),
        ({"name": "a", "builtin": "mnist"}, "known: cifar10"),
        ({"name": "a", "builtin": "digits", "resolution_px": 8}, "not resized"),
        ({"name": "cifar10", "path": "/x"}, "TAILOR_DATASET_ROOTS"),
        ({"name": "../a", "builtin": "digits"}, "name"),
    ],
)
def test_a_registration_that_means_nothing_is_refused(api, body, said):
    before = api.stored()
    assert said in problem(api.http.post("/v1/datasets", json=body), 422, "invalid_request")
    assert api.stored() == before


def test_paths_are_registered_under_the_allowed_roots_only(serve, tmp_path, files):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        for name, content in files.images("flowers/").items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    (root / "link").symlink_to(outside / "flowers")
    (root / "loop").symlink_to(root / "loop")
    with serve(dataset_roots=(root,)) as api:

        def register(path):
            return api.http.post("/v1/datasets", json={"name": "flowers", "path": str(path)})

        before = api.stored()
        for path in (outside / "flowers", root / ".." / "outside", root / "link", "root", "/"):
            problem(register(path), 422, "invalid_request")
        assert api.stored() == before
        found = check(api, register(root / "flowers").json())
        assert found["status"] == "ready", found
        assert opened(api, "flowers").digest == found["digest"]
        facts = facts_of(api, "flowers")
        (root / "flowers" / "daisy" / "0.png").write_bytes(files.png(value=255))
        with pytest.raises(DatasetError, match="have changed since it was checked"):
            open_dataset(api.settings, artifacts(api), facts)
        (root / "flowers").rename(tmp_path / "elsewhere")
        (root / "flowers").symlink_to(outside / "flowers")
        with pytest.raises(DatasetError, match="does not lie under"):
            open_dataset(api.settings, artifacts(api), facts)


# -- who sees what ---------------------------------------------------------------------


def test_a_data_set_of_another_account_does_not_exist(api_on_both, files):
    api = api_on_both
    made = uploaded(api, "private", files.npz(**files.arrays(seed=8)))
    key = api.http.post("/v1/keys", json={"name": "other", "scope": "user"}).json()["token"]
    other = api.client(key)
    for method in ("GET", "DELETE"):
        for name in (made["id"], "private"):
            problem(other.request(method, f"/v1/datasets/{name}"), 404, "not_found")
    assert "private" not in [d["name"] for d in other.get("/v1/datasets").json()["items"]]
    own = send(api, "private", files.npz(**files.arrays(seed=8)), other)
    assert own.status_code == 201
    assert own.json()["id"] != made["id"]


def test_lists_come_in_pages_and_answers_have_tags(api_on_both, files):
    api = api_on_both
    made = [send(api, f"page-{i}", files.npz(**files.arrays(seed=i))).json() for i in range(3)]
    names, cursor = [], None
    while True:
        params = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = api.http.get("/v1/datasets", params=params).json()
        assert len(page["items"]) <= 2
        names += [one["name"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("page-")] == ["page-2", "page-1", "page-0"]
    assert names[-4:] == ["fashion_mnist", "digits", "cifar100", "cifar10"]
    first = api.http.get(f"/v1/datasets/{made[0]['id']}")
    known = {"If-None-Match": first.headers["ETag"]}
    assert api.http.get(f"/v1/datasets/{made[0]['id']}", headers=known).status_code == 304
    check(api, made[0])
    assert api.http.get(f"/v1/datasets/{made[0]['id']}", headers=known).status_code == 200


def test_uploads_are_in_the_audit_log(api, files):
    made = send(api, "audited", files.npz(**files.arrays(seed=9))).json()
    entries = api.http.get("/v1/audit", params={"object": made["id"]}).json()["items"]
    assert [e["action"] for e in entries] == ["POST /v1/datasets/uploads"]
    assert hashlib.sha256(b"").hexdigest() not in str(entries)


# -- searches --------------------------------------------------------------------------


def test_a_search_on_own_images_has_a_space_fitted_to_them(api_on_both, files):
    api = api_on_both
    made = uploaded(api, "tiny", files.npz(**files.arrays(seed=10)))
    device = api.enrol_new_target()
    search = api.search(device.target_id, budget_ms=1.0, dataset="tiny")
    assert search["spec"]["search_space"] == "micro_i3_k3"
    problem(api.http.delete("/v1/datasets/tiny"), 409, "conflict")
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    assert api.http.delete(f"/v1/datasets/{made['id']}").status_code == 204
    body = {"target": device.target_id, "latency_budget_ms": 1.0, "dataset": "tiny"}
    told = problem(api.http.post("/v1/searches", json=body), 422, "invalid_request")
    assert "no data set is called 'tiny'" in told


def test_a_space_that_cannot_be_fitted_is_refused_naming_those_that_can(api, files):
    uploaded(api, "odd", files.npz(**files.arrays(seed=11)))
    body = {
        "target": api.enrol_new_target().target_id,
        "latency_budget_ms": 1.0,
        "dataset": "odd",
        "search_space": "proxyless_imagenet",
    }
    told = problem(api.http.post("/v1/searches", json=body), 422, "invalid_request")
    assert "3 x 224 x 224 images of 1000 classes" in told
    assert "micro, nasbench201" in told


def test_a_search_needs_as_many_images_as_a_step_takes(api, files):
    few = {key: value[:18] for key, value in files.arrays(seed=12).items()}
    uploaded(api, "few", files.npz(**few))
    target = api.enrol_new_target().target_id
    body = {"target": target, "latency_budget_ms": 1.0, "dataset": "few"}
    told = problem(api.http.post("/v1/searches", json=body), 422, "invalid_request")
    assert "18 training images, fewer than the 32" in told


@pytest.mark.slow
def test_a_search_on_own_images_ends_with_a_network_for_them(serve, files):
    """From an archive of folders to a measured network of the fitted space."""
    from service.searches.tasks import run_search_job

    with serve() as api:
        uploaded(api, "flowers", files.zipped(*folders(files), *more(files)))
        device = api.enrol_new_target()
        search = api.search(device.target_id, 0.05, dataset="flowers", epochs=4)
        device.answer_everything()
        api.run_fit()
        claim, context = api.claim(search)
        with device.answering():
            run_search_job(context, claim.subject_id)
        found = api.read(search)
        assert found["status"] in ("succeeded", "infeasible"), found["status_reason"]
        assert found["result"]["network"]["test_accuracy"] is not None


def more(files) -> list[tuple[str, bytes]]:
    """Enough images for a step."""
    return [
        (f"train/{name}/more-{i}.png", files.png(value=i))
        for name in ("daisy", "tulip")
        for i in range(20)
    ]
