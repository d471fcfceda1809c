"""A kit measured on a device without a network: `python run.py` in the folder of the kit.

Needs Python, numpy and onnxruntime, nothing else of Tailor. Every result is on disk before the
next measurement begins, so a run that was killed goes on where it stopped.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from predictor.agent.doctor import examine
from predictor.agent.results import Measures, Try, failure, in_words, one_try, settled
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.registry import RUNTIMES, make_runtime
from predictor.agent.signing import check_signature
from predictor.errors import NotAuthenticError, RuntimeFailedError, TaskFailedError
from predictor.measurements import TargetProfile

KIT_FORMAT = "tailor-kit/1"
RESULTS_FORMAT = "tailor-results/1"
JOURNAL_FORMAT = "tailor-journal/1"


class BundleError(Exception):
    """The kit or an earlier run's journal cannot be used; the text says what to do."""


# -- the kit ---------------------------------------------------------------------------


@dataclass(frozen=True)
class KitFile:
    """One file of a kit to measure."""

    subject: str
    model_sha256: str


@dataclass(frozen=True)
class OfflineKit:
    """A kit's manifest and the folder with its files.

    Attributes:
        sha256: of the manifest's bytes; names the kit in journals and results.
        document: the manifest as it was signed.
    """

    folder: Path
    sha256: str
    document: dict[str, Any]
    items: tuple[KitFile, ...]

    @classmethod
    def load(cls, folder: Path) -> "OfflineKit":
        """The kit in `folder`.

        Raises:
            BundleError: there is none, or of another format.
        """
        path = folder / "manifest.json"
        try:
            content = path.read_bytes()
            document = json.loads(content)
            found = document["format"]
            items = tuple(
                KitFile(item["subject"], item["model_sha256"]) for item in document["items"]
            )
            missing = {"search_space", "precision", "batch", "anchor_sha256"} - set(document)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is no manifest: {type(error).__name__} {error}") from error
        if found != KIT_FORMAT or missing:
            raise BundleError(f"{path} is no {KIT_FORMAT} but {found}; missing: {missing or '-'}")
        return cls(folder, hashlib.sha256(content).hexdigest(), document, items)

    def file(self, sha256: str) -> bytes:
        """A model file.

        Raises:
            BundleError: it is missing or has another hash than the manifest says.
        """
        path = self.folder / "models" / f"{sha256}.onnx"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BundleError(f"{path} has another hash than the manifest says; unpack it again")
        return content

    def check(self) -> str:
        """Check the signature and every file's hash; what was checked, in words.

        Raises:
            BundleError: something is not as it was exported.
        """
        for sha256 in {self.document["anchor_sha256"], *(i.model_sha256 for i in self.items)}:
            self.file(sha256)
        try:
            check_manifest(self.document)
        except ImportError:
            return "file hashes match; signature not checked (needs the package cryptography)"
        except NotAuthenticError as error:
            raise BundleError(f"manifest.json was changed: {error}") from error
        key = hashlib.sha256(str(self.document["signing_key"]).encode()).hexdigest()[:16]
        return f"file hashes and signature match; key {key}"


def check_manifest(document: dict[str, Any]) -> None:
    """Check a manifest's signature by the key it names.

    Raises:
        NotAuthenticError: it was changed after it was signed, or never signed.
        ImportError: the package cryptography is not here.
    """
    signed = {name: value for name, value in document.items() if name != "signature"}
    message = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    signature, key = document.get("signature"), document.get("signing_key")
    if not isinstance(signature, str) or not isinstance(key, str):
        raise NotAuthenticError("it has no signature")
    check_signature(message, signature, key)


# -- results on disk -------------------------------------------------------------------


class ResultsJournal:
    """One line a result, synced before the next task begins; the first line names the run.

    Args:
        header: of which kit, target and agent the results are; an earlier run's must be equal.

    Raises:
        BundleError: the file at `path` is of another run.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        header = {"format": JOURNAL_FORMAT, **header}
        lines = self._whole_lines()
        if not lines:
            self._append(header)
            return
        if lines[0] != header:
            changed = sorted(name for name in header if lines[0].get(name) != header[name])
            raise BundleError(
                f"{path} is of another run ({', '.join(changed)} differ); "
                "give another --output, or move it away"
            )
        for line in lines[1:]:
            self._results[line["subject"], line["model_sha256"]] = line

    @property
    def results(self) -> list[dict[str, Any]]:
        """The latest result of every file measured so far."""
        return list(self._results.values())

    def has(self, item: KitFile) -> bool:
        """Whether `item` needs no measuring: all is known but that it was too noisy."""
        result = self._results.get((item.subject, item.model_sha256))
        return result is not None and result.get("failure", {}).get("code") != "too_noisy"

    def add(self, item: KitFile, result: dict[str, Any]) -> None:
        """Keep a result across a crash or a power cut."""
        line = {**asdict(item), **result}
        self._append(line)
        self._results[item.subject, item.model_sha256] = line

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Every line that was written whole; what a kill left of the last one is cut off."""
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise BundleError(
                f"{self._path} is no journal of results; give another --output"
            ) from error
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        return lines


# -- the run ---------------------------------------------------------------------------


def main(folder: Path, agent_version: str, arguments: list[str] | None = None) -> int:
    """Measure the kit in `folder`; the exit status.

    Returns:
        0: everything asked for is measured; 1: stopped before that, run it again to go on;
        2: nothing could be done, standard error says why.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(folder, agent_version, options)
    except (BundleError, RuntimeFailedError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("run.py", description="Measure this kit on this device.")
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="onnxruntime-cpu")
    parser.add_argument("--threads", type=_positive_int, default=1, help="of the runtime")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="what this runtime alone needs; may be repeated",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results.json"), help="beside it grows a .jsonl"
    )
    parser.add_argument("--limit-minutes", type=_positive, help="stop then; run it again to go on")
    parser.add_argument(
        "--only", metavar="GLOB", default="*", help="measure only these subjects: 'block:*_k3_*'"
    )
    parser.add_argument(
        "--doctor", action="store_true", help="only say what would spoil the numbers here"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a path or a serial number needs no quotes


def _run(folder: Path, agent_version: str, options: argparse.Namespace) -> int:
    from predictor.agent.sandbox import Sandbox  # needs numpy; help and errors do not

    kit = OfflineKit.load(folder)
    _say(f"kit {kit.document['search_space']}, {len(kit.items)} files: {kit.check()}")
    wanted = [item for item in kit.items if fnmatchcase(item.subject, options.only)]
    if not wanted:
        raise BundleError(f"no subject of this kit matches --only {options.only!r}")
    spec = RuntimeSpec(
        options.runtime,
        options.threads,
        kit.document["precision"],
        kit.document["batch"],
        dict(options.option),
    )
    profile = make_runtime(spec).profile()
    if options.doctor:
        return _doctor(spec, options.output.absolute().parent)
    _say(f"target: {', '.join(f'{k} {v}' for k, v in asdict(profile).items())}")
    run = {"manifest_sha256": kit.sha256, "profile": asdict(profile), "version": agent_version}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    journal = ResultsJournal(options.output.with_suffix(".jsonl"), run)
    with Sandbox(spec) as sandbox:
        measure_kit(kit, wanted, sandbox, journal, _stopper(options.limit_minutes), _say)
    write_results(options.output, kit, profile, agent_version, journal)
    left = sum(not journal.has(item) for item in wanted)
    _say(f"{options.output}: {len(journal.results)} results of {len(kit.items)} files")
    if left:
        _say(f"{left} are left: run it again to go on")
    _say(f"bring it back: tailor agent bundle import {options.output.name}")
    return 1 if left else 0


def _doctor(spec: RuntimeSpec, folder: Path) -> int:
    findings = examine(spec, None, folder)
    for finding in findings:
        _say(f"{finding.level:4}  {finding.check}: {finding.found}  {finding.advice}".rstrip())
    return int(any(finding.level == "bad" for finding in findings))


def measure_kit(
    kit: OfflineKit,
    wanted: list[KitFile],
    stopwatch: Measures,
    journal: ResultsJournal,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Measure what of `wanted` the journal does not have, in random order.

    Args:
        should_stop: asked between two tasks.
        say: hears one line for each result.

    Raises:
        BundleError: a file of the kit was changed meanwhile.
    """
    anchor_sha256 = kit.document["anchor_sha256"]
    anchor = kit.file(anchor_sha256)
    waiting = [item for item in wanted if not journal.has(item)]
    random.shuffle(waiting)  # drift must not line up with the order of a kit
    tries: dict[KitFile, list[Try]] = {item: [] for item in waiting}
    total, n_before, started = len(wanted), len(wanted) - len(waiting), time.monotonic()
    done = 0
    while waiting and not should_stop():
        item = waiting.pop(0)
        try:
            latest = one_try(stopwatch, kit.file(item.model_sha256), anchor_sha256, anchor, "table")
        except TaskFailedError as error:
            result: dict[str, Any] | None = failure(error.code, error.reason, error.detail)
        else:
            result = settled(latest, tries[item])
        if result is None:
            waiting.append(item)  # too noisy now: comes last again
            continue
        journal.add(item, result)
        done += 1
        left_seconds = (time.monotonic() - started) / done * len(waiting)
        say(
            f"[{n_before + done}/{total}, {_minutes(left_seconds)} left] "
            f"{item.subject}: {in_words(result)}"
        )


def write_results(
    path: Path,
    kit: OfflineKit,
    profile: TargetProfile,
    agent_version: str,
    journal: ResultsJournal,
) -> None:
    """Write what `tailor agent bundle import` reads, whole or not at all."""
    document = {
        "format": RESULTS_FORMAT,
        "manifest_sha256": kit.sha256,
        "search_space": kit.document["search_space"],
        "precision": kit.document["precision"],
        "batch": kit.document["batch"],
        "profile": asdict(profile),
        "agent_version": agent_version,
        "finished_at": datetime.now(UTC).isoformat(),
        "items": sorted(journal.results, key=lambda r: (r["subject"], r["model_sha256"])),
    }
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _stopper(limit_minutes: float | None) -> Callable[[], bool]:
    """True once Ctrl-C or SIGTERM came or the time is up."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: asked.append(received))
    end = time.monotonic() + limit_minutes * 60 if limit_minutes else float("inf")
    return lambda: bool(asked) or time.monotonic() > end


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
