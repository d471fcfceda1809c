"""Budgets on a GPU, met by networks that were searched, trained and measured on that GPU.

A whole installation (API, worker, agent; SQLite), as a user would have it: the agent measures the
space with PyTorch on the GPU, images of CIFAR-10 are uploaded, and DSNAS and ProxylessNAS search
for a network within each budget. The worker may run two attempts at once and has one GPU, and
every search is created at the beginning: meanwhile each attempt's environment is read, and no two
searches may hold the GPU at a time.

    python -m benchmarks.gpu_searches --data cifar10/ --out benchmarks/results/RECORD.json
    python -m benchmarks.gpu_searches --data cifar10/ --device cpu --quick

`--device cpu` takes the same road with PyTorch on the CPU. What has not ended after `--minutes` is
cancelled, and told as such. `reached` says whether every search ended with a network measured at
or under its budget, and every attempt saw the GPU it was given and no other. The last line is
JSON, and the record is written anew after each search.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil

from benchmarks.installations import Installation, installation
from benchmarks.records import last_line, new_record, write_record
from search_core.data.catalogue import dataset_info
from search_core.data.decode import Decoder
from search_core.data.known import read_known
from search_core.space.presets import fitted_space
from service.client.client import Client
from service.latency_models.schemas import LatencyModelRead
from service.searches.schemas import TERMINAL, Baseline, SearchRead
from service.workers.schemas import WorkerRead

ALGORITHMS = ("dsnas", "proxyless_two_path")
SHARES = (0.35, 0.7)
"""Budgets as shares of the way from the fastest reachable latency to the slowest."""

_POLL_SECONDS = 0.5
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Setting:
    """What is searched for, and on what.

    Attributes:
        batch: images in one call of the deployed network.
        n_train, n_test: images at most.
    """

    runtime: str
    options: tuple[str, ...]
    batch: int
    space: str
    epochs: int
    n_train: int
    n_test: int
    worker: dict[str, str]


_FULL = Setting(
    runtime="torch-cuda-graph",
    options=(),
    batch=128,
    space="nasbench201_n1",
    epochs=6,
    n_train=50_000,
    n_test=10_000,
    worker={"worker_gpus": "0", "worker_slots": "2"},
)


def setting_of(device: str, *, quick: bool) -> Setting:
    """The whole thing on a GPU; on a CPU, or quickly, the same road with less of everything."""
    fields = dict(_FULL.__dict__)
    if quick:
        fields |= {"space": "nasbench201_n1_s2", "epochs": 4, "n_train": 640, "n_test": 400}
    if device == "cpu":
        fields |= {
            "runtime": "torch-cuda",
            "options": ("device=cpu",),
            "batch": 8,
            "worker": {"worker_gpus": "none", "worker_slots": "1", "attempt_threads": "1"},
        }
    return Setting(**fields)


def main() -> int:
    """Measure, search, and hold every search against its budget; 0 when all are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 or a part, in any form")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small space, few images")
    parser.add_argument("--space", help="another space of 32 px images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int, help="images in one call of the deployed network")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the band")
    parser.add_argument("--no-hand-made", action="store_true", help="the random baseline alone")
    parser.add_argument("--minutes", type=float, default=60.0, help="cancel what runs by then")
    parser.add_argument("--out", type=Path, help="write the record here")
    arguments = parser.parse_args()
    setting = setting_of(arguments.device, quick=arguments.quick)
    given = {name: getattr(arguments, name) for name in ("space", "epochs", "batch")}
    asked = {name: value for name, value in given.items() if value is not None}
    setting = Setting(**{**setting.__dict__, **asked})

    record = new_record("gpu_searches") | {
        "device": arguments.device,
        "shares": list(arguments.shares),
        "hand_made": not arguments.no_hand_made,
        "setting": {k: v for k, v in setting.__dict__.items() if k != "worker"},
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
        "ended": "early",
        "searches": [],
        "reached": False,
    }
    began = time.monotonic()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tailor-gpu-")))
        stack.callback(write_record, record, arguments.out)
        deadline = began + 60.0 * arguments.minutes
        run = _Run(work, setting, record, arguments.out, began, deadline)
        try:
            run.all(arguments.data)
        except BaseException as error:
            record["ended"] = f"{type(error).__name__}: {error}"[:2000]
            raise
        else:
            record["ended"] = "in time" if run.in_time else "out of time"
            record["reached"] = run.in_time and _is_reached(record, arguments.device)
        finally:
            record["minutes"] = round((time.monotonic() - began) / 60.0, 2)
            if not record["reached"]:
                record["logs"] = run.logs()
    last_line(record, leave_out=("logs",))
    return 0 if record["reached"] else 1


def _is_reached(record: dict[str, Any], device: str) -> bool:
    met = [
        search["status"] == "succeeded" and search["measured_ms"] <= search["budget_ms"]
        for search in record["searches"]
    ]
    seen, checked = record["attempts"], device == "cpu" or bool(record["attempts"]["searches"])
    return all(met) and bool(met) and checked and not seen["wrong"] and not seen["overlapping"]


# -- the run ---------------------------------------------------------------------------


class _Run:
    """One installation and its device; fills the record as it goes."""

    def __init__(
        self,
        work: Path,
        setting: Setting,
        record: dict[str, Any],
        out: Path | None,
        began: float,
        deadline: float,
    ) -> None:
        self._work, self._setting, self._record, self._out = work, setting, record, out
        self._began, self._deadline = began, deadline
        self.in_time = True

    def all(self, data: Path) -> None:
        """From an empty folder to searches that have ended."""
        settings = {"attempt_device": self._record["device"], **self._setting.worker}
        with (
            installation(self._work / "service", **settings) as service,
            Client(service.url, service.key) as client,
            self._measuring(service, client),
        ):
            self._say("installed")
            dataset = self._upload(client, data)
            model = self._measured(client)
            workers = client.workers(online=True)
            self._record["worker"] = workers[0].resources.model_dump()
            with _Sampler(client) as sampler:
                self._search(client, model, dataset)
            ended = [client.search(entry["id"]) for entry in self._record["searches"]]
            self._record["attempts"] = _told_of_attempts(sampler, workers[0], ended)

    def logs(self) -> dict[str, str]:
        """The ends of the processes' logs."""
        return {
            path.name: path.read_text(encoding="utf-8", errors="replace")[-4000:]
            for path in sorted(self._work.rglob("*.log"))
        }

    @contextmanager
    def _measuring(self, service: Installation, client: Client) -> Iterator[None]:
        """Meanwhile an agent measures with PyTorch on the device."""
        setting, state = self._setting, self._work / "agent"
        space = fitted_space(setting.space, 3, 32, 10).name
        state.mkdir()
        agent = [sys.executable, "-m", "service.cli", "agent"]
        enrol = [*agent, "enrol", client.create_enrolment_code(space).code]
        enrol += ["--url", service.url, "--name", "gpu", "--state", str(state)]
        enrol += ["--runtime", setting.runtime, "--batch", str(setting.batch)]
        enrol += [word for option in setting.options for word in ("--option", option)]
        with (self._work / "agent.log").open("ab") as log:
            subprocess.run(enrol, check=True, stdout=log, stderr=log)
            process = subprocess.Popen(
                [*agent, "run", "--state", str(state)], stdout=log, stderr=log
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def _upload(self, client: Client, folder: Path) -> str:
        """The images as a data set that was checked; its name."""
        whole = read_known(dataset_info("cifar10"), folder, Decoder(), verify=False)
        file, (n_train, n_test) = self._work / "images.npz", self._sizes
        np.savez(
            file,
            x_train=whole.train.images[:n_train],
            y_train=whole.train.labels[:n_train],
            x_test=whole.test.images[:n_test],
            y_test=whole.test.labels[:n_test],
        )
        made = client.upload_dataset(file)
        dataset = client.wait_for_dataset(made.id, self._left_seconds())
        self._record["dataset"] = dataset.model_dump(
            include={"status", "reason", "n_train", "n_test", "resolution_px", "digest"}
        )
        self._say(f"{dataset.n_train} + {dataset.n_test} images are {dataset.status}")
        return dataset.name

    @property
    def _sizes(self) -> tuple[int, int]:
        return self._setting.n_train, self._setting.n_test

    def _measured(self, client: Client) -> LatencyModelRead:
        """The latency model of the space on the device, once the agent has measured all of it."""
        space = fitted_space(self._setting.space, 3, 32, 10).name
        (target,) = client.targets()
        self._record["profile"] = target.profile
        ends_at = (time.monotonic() + self._deadline) / 2.0  # the rest is for the searches
        while (model := client.active_latency_model(target.id, space)) is None:
            if time.monotonic() > ends_at:
                raise SystemExit("the space was not measured in half of the time")
            time.sleep(_POLL_SECONDS)
        readings = list(client.measurements(target.id))
        self._record["latency_model"] = {
            "fastest_ms": model.fastest_ms,
            "slowest_ms": model.slowest_ms,
            "held_out": model.report.get("held_out"),
            "measurements": len(readings),
            "flagged": sum(reading.flagged for reading in readings),
            "seconds": round(time.monotonic() - self._began, 1),
        }
        self._say(f"networks take {model.fastest_ms:.4g} to {model.slowest_ms:.4g} ms")
        return model

    def _search(self, client: Client, model: LatencyModelRead, dataset: str) -> None:
        """Create every search, and write each down as it ends."""
        waiting: dict[str, None] = {}
        for share, algorithm in product(self._record["shares"], ALGORITHMS):
            budget_ms = model.fastest_ms + share * (model.slowest_ms - model.fastest_ms)
            search = client.create_search(
                target=model.target,
                latency_budget_ms=budget_ms,
                search_space=self._setting.space,
                dataset=dataset,
                algorithm=algorithm,
                epochs=self._setting.epochs,
                hand_made_baseline=self._record["hand_made"],
                worker={"gpus": int(self._record["device"] == "cuda")},
            )
            waiting[search.id] = None
        while waiting:
            if self.in_time and self._left_seconds() <= 0.0:
                self.in_time = False
                for search_id in waiting:
                    client.cancel_search(search_id)
            for search_id in list(waiting):
                with suppress(httpx.HTTPError):
                    search = client.search(search_id)
                    if search.status in TERMINAL:
                        del waiting[search_id]
                        self._note(search)
            time.sleep(_POLL_SECONDS)

    def _note(self, search: SearchRead) -> None:
        entry = _told(search)
        self._record["searches"].append(entry)
        measured = (
            "not measured" if entry["measured_ms"] is None else f"{entry['measured_ms']:.4g} ms"
        )
        self._say(
            f"{entry['algorithm']}, {entry['budget_ms']:.4g} ms: {entry['status']}, "
            f"{entry['reason']}, {measured}, accuracy {entry['test_accuracy']}, "
            f"{entry['attempt_seconds']:.0f} s"
        )
        write_record(self._record, self._out)

    def _left_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def _told(search: SearchRead) -> dict[str, Any]:
    """A search that has ended, in numbers."""
    budget_ms = search.spec.latency_budget_ms
    seconds = sum(
        (attempt.ended_at - attempt.started_at).total_seconds()
        for attempt in search.attempts
        if attempt.ended_at is not None
    )
    entry: dict[str, Any] = {
        "id": search.id,
        "algorithm": search.spec.algorithm,
        "budget_ms": budget_ms,
        "status": search.status,
        "reason": search.status_reason.code if search.status_reason else None,
        "text": search.status_reason.text if search.status_reason else None,
        "measured_ms": None,
        "test_accuracy": None,
        "attempt_seconds": round(seconds, 1),
        "seconds_by_phase": {k: round(v, 1) for k, v in search.seconds_by_phase.items()},
    }
    if search.result is None:
        return entry
    network = search.result.network
    return entry | {
        "architecture": network.architecture,
        "predicted_ms": network.predicted_ms,
        "measured_ms": network.measured.median_ms if network.measured else None,
        "measured_p10_p90_ms": (
            [network.measured.p10_ms, network.measured.p90_ms] if network.measured else None
        ),
        "test_accuracy": network.test_accuracy,
        "accuracy_interval95": network.accuracy_interval95,
        "parameters": network.parameters,
        "macs": network.macs,
        "decisions": len(search.result.decodes),
        "baselines": [_told_of_baseline(each) for each in search.result.baselines],
    }


def _told_of_baseline(baseline: Baseline) -> dict[str, Any]:
    return {
        "kind": baseline.kind,
        "measured_ms": baseline.measured.median_ms if baseline.measured else None,
        "test_accuracy": baseline.test_accuracy,
        "gap": baseline.gap.model_dump() if baseline.gap else None,
    }


# -- what attempts see -----------------------------------------------------------------


@dataclass
class _Seen:
    """An attempt as its process shows it, and the most memory it had of the GPU."""

    job: str
    subject: str | None = None
    visible: str | None = None
    device: str | None = None
    gpu_mib: int | None = None


@dataclass
class _Sampler:
    """Meanwhile a thread looks at the attempts that run below this process."""

    client: Client
    seen: dict[str, _Seen] = field(default_factory=dict)
    card_mib: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            by_process, on_card = _gpu_mib()
            self.card_mib += on_card
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    words = process.cmdline()
                    if "service.attempt" in words:
                        job = words[words.index("service.attempt") + 1]
                        environment = process.environ()
                        seen = self.seen.setdefault(job, _Seen(job))
                        seen.visible = environment.get("CUDA_VISIBLE_DEVICES")
                        seen.device = environment.get("TAILOR_ATTEMPT_DEVICE")
                        if (mib := by_process.get(process.pid)) is not None:
                            seen.gpu_mib = max(mib, seen.gpu_mib or 0)
            with suppress(httpx.HTTPError):
                for worker in self.client.workers(online=True):
                    for attempt in worker.attempts:
                        if attempt.job in self.seen:
                            self.seen[attempt.job].subject = attempt.subject


def _gpu_mib() -> tuple[dict[int, int], list[int]]:
    """MiB of the GPU by process, and in use on each card; empty where nothing tells."""
    by_process = {
        int(pid): int(mib) for pid, mib in _numbers("--query-compute-apps=pid,used_memory")
    }
    return by_process, [int(mib) for (mib,) in _numbers("--query-gpu=memory.used")]


def _numbers(query: str) -> list[list[str]]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [re.split(r",\s*", line.strip()) for line in answer.stdout.splitlines()]
    return [row for row in rows if all(word.isdecimal() for word in row)]


def _told_of_attempts(
    sampler: _Sampler, worker: WorkerRead, searches: Sequence[SearchRead]
) -> dict[str, Any]:
    """What each attempt of a search saw, and whether any saw or shared what it should not."""
    expected = ",".join(gpu.id for gpu in worker.resources.gpus[:1])
    ids = {search.id for search in searches}
    of_searches = [seen for seen in sampler.seen.values() if seen.subject in ids]
    spans = sorted(
        (attempt.started_at, attempt.ended_at)
        for search in searches
        for attempt in search.attempts
        if attempt.ended_at is not None
    )
    overlapping = sum(later[0] < earlier[1] for earlier, later in pairwise(spans))
    peaks = [seen.gpu_mib for seen in of_searches if seen.gpu_mib is not None]
    return {
        "slots": worker.slots,
        "expected_visible": expected,
        "searches": [seen.__dict__ for seen in of_searches],
        "wrong": sum(seen.visible != expected for seen in of_searches),
        "overlapping": overlapping,
        "median_peak_gpu_mib": statistics.median(peaks) if peaks else None,
        "peak_card_mib": max(sampler.card_mib, default=None),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
