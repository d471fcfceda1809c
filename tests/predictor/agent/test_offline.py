"""A kit without a network: checked before it runs, kept while it runs, complete in the end."""

import base64
import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from predictor.agent.offline import (
    BundleError,
    KitFile,
    OfflineKit,
    ResultsJournal,
    main,
    measure_kit,
)
from predictor.agent.results import TRIES
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.registry import make_runtime
from predictor.errors import TaskFailedError
from predictor.kits import anchor_item, block_items
from predictor.measurements import Measurement

DEADLINE_SECONDS = 60.0
RUN = "import sys; from pathlib import Path; from predictor.agent.offline import main; "
HEADER = {"manifest_sha256": "m", "profile": {"threads": 1}, "version": "1"}


def measured(latency_ms: float = 1.0, note: str = "") -> Measurement:
    return Measurement(
        latency_ms=latency_ms,
        p10_ms=latency_ms * 0.99,
        p90_ms=latency_ms * 1.01,
        sigma_ms=0.001,
        n=100,
        thread_cpu_ms=latency_ms,
        contended_share=0.0,
        anchor_ms=0.05,
        provider="none",
        measured_at="2026-01-01T00:00:00+00:00",
        note=note,
    )


def sign(manifest: dict) -> dict:
    """The manifest with a new key's signature over its canonical JSON."""
    key = Ed25519PrivateKey.generate()
    raw = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    document = {**manifest, "signing_key": raw}
    message = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return {**document, "signature": base64.b64encode(key.sign(message)).decode()}


@pytest.fixture
def folder(micro, tmp_path):
    """A signed kit of four blocks of `micro`."""
    place = tmp_path / "kit"
    (place / "models").mkdir(parents=True)

    def put(content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        (place / "models" / f"{sha256}.onnx").write_bytes(content)
        return sha256

    manifest = {
        "format": "tailor-kit/1",
        "search_space": "micro@1",
        "precision": "float32",
        "batch": 1,
        "anchor_sha256": put(anchor_item().build()),
        "items": [
            {"subject": item.subject, "role": item.role, "model_sha256": put(item.build())}
            for item in block_items(micro)[:4]
        ],
    }
    (place / "manifest.json").write_text(json.dumps(sign(manifest)))
    return place


@pytest.fixture
def kit(folder) -> OfflineKit:
    return OfflineKit.load(folder)


@pytest.fixture
def edit(folder):
    """`edit(batch=2)`: changes the manifest after it was signed."""

    def edited(**changes: object) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edited


class Formula:
    """A stopwatch that answers what the test wants for each model file, in turn."""

    def __init__(self, **answers: list) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def measure(self, model, anchor_sha256, anchor, effort):
        assert effort == "table"
        assert hashlib.sha256(anchor).hexdigest() == anchor_sha256
        sha256 = hashlib.sha256(model).hexdigest()
        self.asked.append(sha256)
        answer = self.answers[sha256].pop(0) if sha256 in self.answers else measured()
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(kit, stopwatch, journal, should_stop=lambda: False) -> list[str]:
    said: list[str] = []
    measure_kit(kit, list(kit.items), stopwatch, journal, should_stop, said.append)
    return said


# -- what is checked first -------------------------------------------------------------


def test_a_kit_as_it_was_exported_is_checked_whole(kit):
    assert len(kit.items) == 4
    assert kit.check().startswith("file hashes and signature match; key ")


def test_without_cryptography_it_is_said_that_the_signature_was_not_checked(kit, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert "signature not checked" in kit.check()


def test_a_changed_manifest_is_refused(folder, edit):
    edit(batch=2)
    with pytest.raises(BundleError, match=r"manifest\.json was changed"):
        OfflineKit.load(folder).check()


def test_a_manifest_that_nobody_signed_is_refused(folder, edit):
    edit(signature=None)
    with pytest.raises(BundleError, match="no signature"):
        OfflineKit.load(folder).check()


def test_a_changed_or_missing_model_is_refused_before_anything_runs(kit):
    path = kit.folder / "models" / f"{kit.items[0].model_sha256}.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(BundleError, match="another hash"):
        kit.check()
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        kit.check()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "tailor-kit/1"}', "\0"])
def test_what_is_no_manifest_is_told_in_one_line_and_exit_status_2(tmp_path, capsys, content):
    (tmp_path / "manifest.json").write_text(content)
    assert main(tmp_path, "1", []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "manifest.json" in line


def test_a_folder_without_a_manifest_and_a_pattern_without_subjects_say_so(
    folder, tmp_path, capsys
):
    assert main(tmp_path, "1", []) == 2
    assert "manifest.json cannot be read" in capsys.readouterr().err
    assert main(folder, "1", ["--only", "nothing*"]) == 2
    assert "nothing*" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"],
        ["--limit-minutes", "-1"],
        ["--limit-minutes", "nan"],
        ["--runtime", "abacus"],
        ["--option", "serial"],
    ],
)
def test_arguments_that_mean_nothing_are_refused(folder, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(folder, "1", arguments)
    assert exit_.value.code == 2


# -- measuring -------------------------------------------------------------------------


def test_every_file_is_measured_once_and_told_with_the_time_left(kit, tmp_path):
    stopwatch = Formula()
    said = run(kit, stopwatch, ResultsJournal(tmp_path / "r.jsonl", HEADER))
    assert sorted(stopwatch.asked) == sorted(item.model_sha256 for item in kit.items)
    assert said[-1].startswith("[4/4, 0 s left] block:")
    assert all("1.0000 ms, grade A" in line for line in said)


def test_noise_is_tried_again_last_and_kept_flagged_with_its_tries(kit, tmp_path):
    noisy = kit.items[0].model_sha256
    tries = [measured(1.0 + i / 10, note="it shook") for i in range(TRIES)]
    stopwatch = Formula(**{noisy: list(reversed(tries))})
    journal = ResultsJournal(tmp_path / "r.jsonl", HEADER)
    run(kit, stopwatch, journal)
    assert stopwatch.asked[-TRIES + 1 :] == [noisy] * (TRIES - 1)
    (result,) = (r for r in journal.results if r["model_sha256"] == noisy)
    found = result["measurement"]
    assert (found["latency_ms"], found["flagged"], found["grade"]) == (1.0, True, "C")
    assert found["sigma_ms"] == pytest.approx(0.3)
    assert len(found["quarantined"]) == TRIES - 1


def test_one_noisy_try_is_kept_beside_the_sound_measurement(kit, tmp_path):
    noisy = kit.items[0].model_sha256
    stopwatch = Formula(**{noisy: [TaskFailedError("too_noisy", "noise", "loud"), measured()]})
    journal = ResultsJournal(tmp_path / "r.jsonl", HEADER)
    run(kit, stopwatch, journal)
    (result,) = (r for r in journal.results if r["model_sha256"] == noisy)
    assert result["measurement"]["quarantined"] == ({"latency_ms": None, "reason": "loud"},)
    assert not result["measurement"]["flagged"]


def test_a_file_that_cannot_run_is_kept_with_its_reason_and_the_rest_goes_on(kit, tmp_path):
    bad = kit.items[1].model_sha256
    stopwatch = Formula(**{bad: [TaskFailedError("unsupported", "crashed", "signal 11")]})
    journal = ResultsJournal(tmp_path / "r.jsonl", HEADER)
    run(kit, stopwatch, journal)
    failures = [r["failure"] for r in journal.results if "failure" in r]
    assert failures == [{"code": "unsupported", "reason": "crashed", "detail": "signal 11"}]
    assert len(journal.results) == 4


def test_a_later_run_measures_only_what_is_missing_or_was_too_noisy(kit, tmp_path):
    path = tmp_path / "r.jsonl"
    noise = [TaskFailedError("too_noisy", "noise", "loud")] * TRIES
    noisy, *_ = (item.model_sha256 for item in kit.items)
    first = Formula(**{noisy: list(noise)})
    run(kit, first, ResultsJournal(path, HEADER), should_stop=lambda: len(first.asked) >= 2)
    known = {r["model_sha256"] for r in ResultsJournal(path, HEADER).results}
    second = Formula(**{noisy: list(noise)})
    run(kit, second, ResultsJournal(path, HEADER))
    assert not (known - {noisy}) & set(second.asked)
    third = Formula()
    journal = ResultsJournal(path, HEADER)
    run(kit, third, journal)
    assert third.asked == [noisy]
    assert all("measurement" in result for result in journal.results)
    assert len(journal.results) == 4


# -- the journal -----------------------------------------------------------------------


def test_half_a_line_is_cut_off_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    one, two = KitFile("block:a:x1", "a" * 64), KitFile("block:b:x1", "b" * 64)
    ResultsJournal(path, HEADER).add(one, {"measurement": asdict(measured())})
    with path.open("a") as file:
        file.write('{"subject": "block:b:x1", "measu')
    journal = ResultsJournal(path, HEADER)
    assert journal.has(one)
    assert not journal.has(two)
    journal.add(two, {"measurement": asdict(measured())})
    assert len(ResultsJournal(path, HEADER).results) == 2


@pytest.mark.parametrize(
    "change", [{"manifest_sha256": "n"}, {"profile": {"threads": 2}}, {"version": "2"}]
)
def test_the_journal_of_another_run_is_left_alone(tmp_path, change):
    path = tmp_path / "r.jsonl"
    ResultsJournal(path, HEADER)
    before = path.read_bytes()
    with pytest.raises(BundleError, match=next(iter(change))):
        ResultsJournal(path, {**HEADER, **change})
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"dear diary\n\xff")
    with pytest.raises(BundleError, match="no journal"):
        ResultsJournal(path, HEADER)
    assert path.read_bytes() == b"dear diary\n\xff"


# -- the whole run ---------------------------------------------------------------------


def start(folder, output, *arguments: str) -> subprocess.Popen:
    script = RUN + f"sys.exit(main(Path({str(folder)!r}), '7', sys.argv[1:]))"
    command = [sys.executable, "-c", script, "--output", str(output), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def n_lines(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_that_is_killed_goes_on_where_it_stopped(folder, tmp_path):
    output, journal = tmp_path / "out" / "results.json", tmp_path / "out" / "results.jsonl"
    process = start(folder, output)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while n_lines(journal) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE_SECONDS)
    kept = journal.read_bytes().splitlines()
    assert len(kept) >= 2
    assert not output.exists()

    again = start(folder, output)
    said, _ = again.communicate(timeout=DEADLINE_SECONDS)
    assert again.returncode == 0, said
    assert journal.read_bytes().splitlines()[: len(kept)] == kept
    assert n_lines(journal) == 1 + 4  # nothing was measured twice
    document = json.loads(output.read_text())
    assert document["format"] == "tailor-results/1"
    assert (document["search_space"], document["agent_version"]) == ("micro@1", "7")
    assert document["profile"] == asdict(make_runtime(RuntimeSpec()).profile())
    assert len(document["items"]) == 4
    assert all(item["measurement"]["latency_ms"] > 0 for item in document["items"])


def test_a_limit_stops_the_run_and_its_results_are_written_all_the_same(folder, tmp_path):
    output = tmp_path / "results.json"
    limited = start(folder, output, "--limit-minutes", "1e-9")
    said, _ = limited.communicate(timeout=DEADLINE_SECONDS)
    assert limited.returncode == 1
    assert "4 are left: run it again" in said
    assert json.loads(output.read_text())["items"] == []


def test_a_runtime_that_is_not_here_is_told(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "predictor.agent.runtimes.onnxruntime_cpu", None)
    output = tmp_path / "results.json"
    assert main(folder, "1", ["--output", str(output)]) == 2
    assert "cannot be used here" in capsys.readouterr().err
    assert not output.exists()


def test_the_doctor_comes_along(folder, tmp_path, monkeypatch, capsys):
    found = [SimpleNamespace(level="bad", check="load", found="9.00", advice="Stop other work.")]
    monkeypatch.setattr("predictor.agent.offline.examine", lambda *_: found)
    assert main(folder, "1", ["--doctor", "--output", str(tmp_path / "results.json")]) == 1
    assert "bad   load: 9.00  Stop other work." in capsys.readouterr().out
    assert not (tmp_path / "results.jsonl").exists()
