"""A device without a network: export, run in a bare folder, import, against a served API."""

import hashlib
import io
import json
import os
import subprocess
import sys
import uuid
import zipfile
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from predictor.agent.offline import check_manifest
from service.cli.main import main
from service.version import VERSION

DEADLINE_SECONDS = 120.0
DEVICE_NEEDS = ("numpy", "numpy.libs", "onnxruntime", "google", "flatbuffers", "packaging")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tailor_at(monkeypatch, capsys, tmp_path):
    """`tailor_at(api, *words)`: exit status, output and complaints of such a command."""

    def run(api, *words: object) -> SimpleNamespace:
        monkeypatch.setenv("TAILOR_URL", api.url)
        monkeypatch.setenv("TAILOR_API_KEY", api.admin_key)
        monkeypatch.setenv("TAILOR_HOME", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["tailor", "agent", "bundle", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=exit_.value.code or 0, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def bundle(tailor_at, api):
    """`tailor agent bundle ...` against the API of the module."""
    return lambda *words: tailor_at(api, *words)


@pytest.fixture(scope="module")
def manifest(api) -> dict:
    return api.http.get("/v1/kit-files", params={"search_space": "micro"}).json()


def measurement(latency_ms: float = 1.0, **changes: object) -> dict:
    return {
        "latency_ms": latency_ms,
        "p10_ms": latency_ms * 0.99,
        "p90_ms": latency_ms * 1.01,
        "sigma_ms": latency_ms * 0.001,
        "n": 100,
        "thread_cpu_ms": latency_ms,
        "contended_share": 0.0,
        "anchor_ms": 0.05,
        "provider": "none",
        "measured_at": datetime.now(UTC).isoformat(),
        "grade": "A",
        "flagged": False,
        "note": "",
        "quarantined": [],
        "protocol_version": 2,
        "unit": "ms",
        "facts": {},
        **changes,
    }


@pytest.fixture
def results(tmp_path, manifest):
    """`results(items)`: a file of a new device's results; `change` edits each before."""

    def write(items: list[dict] | None = None, **changes: object) -> Path:
        document = {
            "format": "tailor-results/1",
            "manifest_sha256": "m" * 64,
            "search_space": manifest["search_space"],
            "precision": "float32",
            "batch": 1,
            "profile": {
                "device_model": f"island {uuid.uuid4().hex[:8]}",
                "machine": "riscv64",
                "system": "none",
                "runtime": "onnxruntime",
                "runtime_version": "1",
                "execution_provider": "none",
                "threads": 1,
                "precision": "float32",
                "batch": 1,
                "clock_state": "unmanaged",
            },
            "agent_version": VERSION,
            "finished_at": datetime.now(UTC).isoformat(),
            "items": recorded(manifest) if items is None else items,
            **changes,
        }
        path = tmp_path / "results.json"
        path.write_text(json.dumps(document))
        return path

    return write


def recorded(manifest: dict) -> list[dict]:
    """A result for every file of the kit: the larger the file, the slower."""
    return [
        {
            "subject": item["subject"],
            "model_sha256": item["model_sha256"],
            "measurement": measurement(0.01 + item["n_bytes"] * 1e-6),
        }
        for item in manifest["items"]
    ]


def stored(api, target_id: str) -> dict[str, float]:
    """The latencies that the API has of a target, by subject."""
    found, cursor = {}, {}
    while True:
        asked = {"target": target_id, "limit": 200, **cursor}
        page = api.http.get("/v1/measurements", params=asked).json()
        found |= {row["subject"]: row["latency_ms"] for row in page["items"]}
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


# -- export ----------------------------------------------------------------------------


def test_an_archive_holds_the_signed_kit_and_this_installations_agent(bundle, tmp_path):
    path = tmp_path / "kit.zip"
    ran = bundle("export", "--space", "micro", "-o", path, "--json")
    assert ran.status == 0, ran.err
    told = json.loads(ran.out)
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    assert list(contents) == sorted(contents)
    found = json.loads(contents["manifest.json"])
    check_manifest(found)
    needed = {found["anchor_sha256"], *(item["model_sha256"] for item in found["items"])}
    models = {name: c for name, c in contents.items() if name.startswith("models/")}
    assert set(models) == {f"models/{sha256}.onnx" for sha256 in needed}
    assert all(name[7:71] == hashlib.sha256(c).hexdigest() for name, c in models.items())
    code = {name: c for name, c in contents.items() if name.startswith("predictor/")}
    assert all((REPOSITORY / name).read_bytes() == content for name, content in code.items())
    assert {"predictor/__init__.py", "predictor/agent/offline.py"} <= set(code)
    assert not any(word in name for name in code for word in ("__pycache__", "kits", "fit"))
    rest = set(contents) - set(models) - set(code)
    assert rest == {"manifest.json", "run.py", "README.txt"}


def test_the_same_kit_gives_the_same_archive(bundle, tmp_path):
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    for path in (one, two):
        ran = bundle("export", "--space", "micro", "-o", path)
        assert ran.status == 0, ran.err
        assert "python run.py" in ran.err
    assert one.read_bytes() == two.read_bytes()


def test_a_space_that_nobody_knows_exports_nothing(bundle, tmp_path):
    path = tmp_path / "kit.zip"
    refused = bundle("export", "--space", "nowhere", "-o", path)
    assert (refused.status, refused.out) == (2, "")
    assert "nowhere" in refused.err
    assert not path.exists()


# -- the whole road --------------------------------------------------------------------


def test_a_kit_goes_out_is_measured_in_a_bare_folder_and_comes_back(bundle, api, tmp_path):
    assert bundle("export", "--space", "micro", "-o", tmp_path / "kit.zip").status == 0
    place, site = tmp_path / "kit", tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "kit.zip") as file:
        file.extractall(place)
    site.mkdir()
    for name in DEVICE_NEEDS:  # what pip install numpy onnxruntime would bring, and no more
        origin = Path(find_spec("numpy").origin).parents[1] / name
        if origin.exists():
            (site / name).symlink_to(origin)
    command = [sys.executable, "-S", "run.py", "--only", "block:*_r8:x4", "--output", "r.json"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    ran = subprocess.run(
        command,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "signature not checked (needs the package cryptography)" in ran.stdout
    measured = json.loads((place / "r.json").read_text())["items"]
    assert measured
    assert all(item["measurement"]["latency_ms"] > 0 for item in measured)

    came = bundle("import", place / "r.json", "--json")
    assert came.status == 0, came.out + came.err
    report = json.loads(came.out)
    assert report["accepted"] == len(measured)
    assert stored(api, report["target"]) == {
        item["subject"]: item["measurement"]["latency_ms"] for item in measured
    }
    profile = api.http.get(f"/v1/targets/{report['target']}").json()["profile"]
    assert profile["runtime"] == "onnxruntime"


# -- import ----------------------------------------------------------------------------


def test_a_whole_kit_is_imported_and_becomes_a_latency_model(bundle, api, results, manifest):
    path = results()
    ran = bundle("import", path, "--json")
    assert ran.status == 0, ran.out + ran.err
    report = json.loads(ran.out)
    n = len(manifest["items"])
    assert (report["accepted"], report["refused"], report["already_there"]) == (n, 0, 0)
    assert len(stored(api, report["target"])) == n
    api.run_fit()
    models = api.http.get("/v1/latency-models", params={"target": report["target"]}).json()
    assert [model["search_space"] for model in models["items"]] == ["micro"]


def test_importing_the_same_file_again_adds_nothing_and_says_so(bundle, api, results):
    path = results()
    first = json.loads(bundle("import", path, "--json").out)
    before = stored(api, first["target"])
    n_measurements = api.stored()["measurements"]
    again = bundle("import", path)
    assert again.status == 0, again.out + again.err
    assert "Nothing was added." in again.err
    assert "already there" in again.out
    assert stored(api, first["target"]) == before
    assert api.stored()["measurements"] == n_measurements


def test_tampered_results_are_refused_one_by_one_and_the_rest_is_kept(
    bundle, api, results, manifest
):
    items = recorded(manifest)
    negative, absurd, hash_, nan, unit, gone, twice = items[:7]
    negative["measurement"] = measurement(-1.0)
    absurd["measurement"] = measurement(1e9)
    hash_["model_sha256"] = "0" * 64
    nan["measurement"] = measurement(sigma_ms=float("nan"))
    unit["measurement"] = measurement(unit="us")
    gone["subject"] = "block:never_heard_of_it:x1"
    path = results([*items, {**twice, "measurement": measurement(2.0)}])
    ran = bundle("import", path, "--json")
    assert ran.status == 1, ran.out + ran.err
    report = json.loads(ran.out)
    verdicts = report["items"]
    refused = {index for index, v in enumerate(verdicts) if v["verdict"] == "refused"}
    assert refused == {0, 1, 2, 3, 4, 5, len(items)}
    assert all(verdicts[index]["reason"] for index in refused)
    assert "no such subject" in verdicts[5]["reason"]
    assert "another result" in verdicts[len(items)]["reason"]
    kept = stored(api, report["target"])
    assert set(kept) == {item["subject"] for item in items[6:]}
    table = bundle("import", path)
    assert table.status == 1
    assert "block:never_heard_of_it:x1" in table.out


def test_a_failure_is_imported_as_a_failure(bundle, api, results, manifest):
    item, *_ = recorded(manifest)
    failed = {"code": "unsupported", "reason": "crashed", "detail": "signal 11"}
    path = results([{**item, "measurement": None, "failure": failed}])
    report = json.loads(bundle("import", path, "--json").out)
    assert report["accepted"] == 1
    assert stored(api, report["target"]) == {}


def test_what_a_file_does_not_answer_stays_open_for_a_fuller_one(
    tailor_at, serve, eventually, results, manifest
):
    with serve(task_lease_seconds=1.0) as api:
        items = recorded(manifest)
        path = results(items[:5])
        first = json.loads(tailor_at(api, "import", path, "--json").out)
        assert first["accepted"] == 5
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "items": items}))

        def whole() -> bool:
            ran = tailor_at(api, "import", path, "--json")
            assert ran.status in (0, 1), ran.err
            return len(stored(api, first["target"])) == len(items)

        eventually(whole, "the rest has not been imported", pause_seconds=0.3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"format": "tailor-kit/1"}',
        b'{"format": "tailor-results/1", "items": 3}',
    ],
)
def test_what_is_no_file_of_results_is_told_before_anything_is_created(
    bundle, api, tmp_path, content
):
    before = api.stored()
    path = tmp_path / "results.json"
    path.write_bytes(content)
    refused = bundle("import", path)
    assert (refused.status, refused.out) == (2, "")
    (line,) = refused.err.strip().splitlines()
    assert "results.json is no file of results" in line
    assert api.stored() == before


def test_a_profile_that_is_none_is_told_before_anything_is_created(bundle, api, results):
    before = api.stored()
    refused = bundle("import", results(profile={"colour": "red"}))
    assert refused.status == 2
    assert "no file of results" in refused.err
    assert api.stored() == before


def test_a_file_that_is_not_there_is_told(bundle, tmp_path):
    refused = bundle("import", tmp_path / "nothing.json")
    assert refused.status == 2
    assert "cannot be read" in refused.err


def test_an_agent_that_is_too_old_is_told_by_the_service(bundle, api, results):
    refused = bundle("import", results(agent_version="0.0.1"))
    assert refused.status == 2
    assert "0.0.1" in refused.err


def test_archives_name_no_folder_of_this_machine(bundle, tmp_path):
    path = tmp_path / "kit.zip"
    assert bundle("export", "--space", "micro", "-o", path).status == 0
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as file:
        texts = [file.read(n) for n in file.namelist() if n.endswith((".py", ".txt", ".json"))]
    assert not any(str(REPOSITORY).encode() in text for text in texts)
