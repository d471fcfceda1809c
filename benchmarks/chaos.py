"""Two hundred faults, and nothing that was promised is broken.

A whole installation of real processes: two APIs, two workers and their attempts, a device
agent that measures this machine with ONNX Runtime, a scripted device, people who create, pause,
resume and cancel searches, a follower who reads every event; on SQLite, and on PostgreSQL. In
storms with calms between them, parts are killed, frozen and cut off, the disk fills up or
hangs, clocks are stepped, requests arrive several times at once: see `chaos_faults`. Then the
storm ends, every search must end, and what the store holds is compared with what anybody was
told: see `chaos_checks`.

    python -m benchmarks.chaos --json
    python -m benchmarks.chaos --quick --store sqlite --seed 7

The plan of the faults follows from the seed; what each hit is in the log, one JSON object a
line, beside the record that `--out` names. The last line of the output is JSON with `faults`
and `violations`; the exit status is 0 only when there are none, and, unless the run is quick,
when every promise was put to the test.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.chaos_checks import NEEDED, Checked, check, essence, settle
from benchmarks.chaos_faults import Fault, Inject, Storm, draw_plan, faults_of
from benchmarks.chaos_load import (
    Caller,
    Follower,
    Ledger,
    Listener,
    People,
    ScriptedDevice,
    Wish,
)
from benchmarks.chaos_parts import Log
from benchmarks.chaos_world import SPACE, Store, World, wait_for, world
from benchmarks.records import last_line, new_record, write_record
from service.db.database import Database

FAULTS, QUICK_FAULTS = 200, 20
_EPOCHS = 9
_QUIET_SECONDS = 150.0
"""After which a search that nothing happens to is stuck."""
_SETUP_SECONDS = 600.0


def main(words: Sequence[str] | None = None) -> int:
    """Run the storms and print the record; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FAULTS} faults a store")
    parser.add_argument("--store", choices=(*get_args(Store), "both"), default="both")
    parser.add_argument("--faults", type=int, help=f"a store; default {FAULTS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="only the record")
    parser.add_argument("--out", type=Path, help="write the record here, and the logs beside it")
    parser.add_argument("--work", type=Path, help="keep what the parts logged, and the store, here")
    arguments = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up first
    arguments.say = (lambda _: None) if arguments.json else partial(print, flush=True)
    n_faults = arguments.faults or (QUICK_FAULTS if arguments.quick else FAULTS)
    stores: tuple[Store, ...] = get_args(Store)
    if arguments.store != "both":
        stores = (arguments.store,)

    record: dict[str, Any] = {**new_record("chaos"), "seed": arguments.seed, "stores": {}}
    for store in stores:
        with tempfile.TemporaryDirectory(prefix="tailor-chaos-") as folder:
            run = _Run(store, Path(folder), n_faults, arguments)
            record["stores"][store] = run.run()
    found = record["stores"].values()
    record["faults"] = sum(of_store["faults"] for of_store in found)
    record["violations"] = sum(of_store["violations"] for of_store in found)
    record["never_put_to_the_test"] = sorted(
        {name for of_store in found for name in of_store["never_put_to_the_test"]}
    )
    write_record(record, arguments.out)
    last_line(record)
    untested = record["never_put_to_the_test"] and not arguments.quick
    return 1 if record["violations"] or untested else 0


class _Run:
    """The storm on one store."""

    def __init__(
        self, store: Store, folder: Path, n_faults: int, arguments: argparse.Namespace
    ) -> None:
        self._store, self._folder, self._n_faults = store, folder, n_faults
        self._quick, self._seed = bool(arguments.quick), int(arguments.seed)
        self._say: Callable[[str], None] = arguments.say
        self._keep: Path | None = arguments.work and arguments.work / store
        self._log_path: Path = folder / "faults.jsonl"
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            self._log_path = arguments.out.with_name(f"{arguments.out.stem}_{store}.jsonl")
        self._ledger = Ledger()

    def run(self) -> dict[str, Any]:
        """Everything, and what came of it."""
        began = time.monotonic()
        log = Log(self._log_path)
        log.write("run", store=self._store, seed=self._seed, faults=self._n_faults)
        with world(self._store, self._folder / "world", log) as made:
            try:
                return self._storm(made, log) | {"seconds": round(time.monotonic() - began)}
            finally:
                made.calm()
                self._keep_evidence(made)
                log.close()

    def _storm(self, made: World, log: Log) -> dict[str, Any]:
        ledger = self._ledger
        people, devices = self._prepare(made)
        reference = self._unbroken(made, people)
        follower, listener = Follower(made, ledger), Listener(made, ledger)
        kinds = faults_of(self._store) | people.faults() | {"duplicate_upload": _twice(devices)}
        weights = {kind: weight for kind, (weight, _) in kinds.items()}
        plan = draw_plan(self._seed, self._n_faults, self._store, weights)
        storm = Storm(made, plan, {kind: inject for kind, (_, inject) in kinds.items()})

        self._say(f"{self._store}: {len(plan)} faults in {plan[-1].at_seconds:.0f} s")
        people.start()
        storm.run(threading.Event())
        people.stop()
        made.calm()
        for said in made.await_readiness():
            ledger.violated("an API is ready again afterwards", said)
        self._say(f"{self._store}: the storm is over, {len(ledger.unfinished)} searches go on")
        cancelled = settle(made, ledger, people, follower, _QUIET_SECONDS)
        wait_for(lambda: made.journalled() == 0, "the agent does not get rid of its results")
        follower.stop()
        listener.stop()
        for device in devices:
            device.close()
        for search_id in ledger.created.values():
            follower.look(search_id)
        follower.close()
        checked = check(
            made, ledger, people, reference, clocks_stepped="clock_step" in storm.injected
        )
        checked["events heard over a stream"] = listener.heard
        people.close()
        for violation in ledger.violations:
            log.write("violation", **asdict(violation))
        return self._summary(made, storm, checked, cancelled)

    def _prepare(self, made: World) -> tuple[People, list[ScriptedDevice]]:
        """Two measured scripted targets, and a real agent that measures its own meanwhile."""
        ledger = self._ledger
        caller = Caller(made.urls, made.key, ledger)
        devices = [
            ScriptedDevice(made, caller, ledger, "a script"),
            ScriptedDevice(made, caller, ledger, "a slow script", factor=1.7),
        ]
        targets = [device.target_id for device in devices]
        for target in targets:
            caller.ask("POST", "/v1/kits", json={"target": target, "search_space": SPACE})
        bands = [
            wait_for(partial(_model, caller, target), "no latency model", _SETUP_SECONDS)
            for target in targets
        ]
        shares = (0.5,) if self._quick else (0.5, 0.25, 0.05)
        wishes = [
            _wish(f"{share:.0%} of the band", _budget(targets[0], bands[0], share), seed=seed)
            for seed, share in enumerate(shares)
        ]
        both = [_budget(*each, 0.4) for each in zip(targets, bands, strict=True)]
        wishes.append(_wish("both scripts", {"targets": both}))
        openapi = caller.ask("GET", "/openapi.json")
        assert openapi is not None
        prefix = "/v1/searches/{search_id}/"
        actions = {p.removeprefix(prefix) for p in openapi.json()["paths"] if p.startswith(prefix)}
        people = People(made, ledger, wishes, self._seed, actions)
        self._invite_this_machine(made, caller, people)
        caller.close()
        return people, devices

    def _invite_this_machine(self, made: World, caller: Caller, people: People) -> None:
        """Have a real agent measure; people search for it as soon as they can."""
        code = caller.ask("POST", "/v1/enrolment-codes")
        assert code is not None
        _, target = made.start_agent(code.json()["code"])
        early = {"target": target, "search_space": SPACE, "until_half_width": 0.5}
        caller.ask("POST", "/v1/kits", json=early)

        def wait() -> None:
            waiting = Caller(made.urls, made.key, self._ledger)
            while (band := _model(waiting, target)) is None:
                if people.stopped.wait(2.0):
                    break
            else:
                budget = _budget(target, band, 0.6)
                people.wishes.append(_wish("this machine", budget, comparable=False))
            waiting.close()

        threading.Thread(target=wait, daemon=True).start()

    def _unbroken(self, made: World, people: People) -> dict[str, Any]:
        """What a search of each comparable wish comes to when nothing breaks, by name."""
        searched = self._essences(made, people, [w for w in people.wishes if w.comparable])
        of_name = {w.name: w for w in people.wishes}
        derived = [
            people.derived(of_name[name], search_id)
            for name, (search_id, found) in searched.items()
            if found["status"] == "succeeded"
        ]
        searched |= self._essences(made, people, [w for w in derived if w.name not in searched])
        return {name: found for name, (_, found) in searched.items()}

    def _essences(
        self, made: World, people: People, wishes: list[Wish]
    ) -> dict[str, tuple[str, dict[str, Any]]]:
        """Of a search of each wish, by name: its id, and what it came to."""
        ids = {wish.name: people.create(wish) for wish in wishes}
        found = {}
        database = Database(made.store_url)
        for name, search_id in ids.items():
            assert search_id is not None
            ended = partial(people.has_ended, search_id)
            wait_for(ended, "an unbroken search does not end", _SETUP_SECONDS)
            with database.reading() as session:
                found[name] = search_id, essence(session, search_id)
            status = found[name][1]["status"]
            if status not in ("succeeded", "infeasible"):
                raise SystemExit(f"an unbroken search has {status}: {people.read(search_id)}")
            self._say(f"{self._store}: unbroken, {name}: {status}")
        database.dispose()
        return found

    def _summary(
        self, made: World, storm: Storm, checked: Checked, cancelled: int
    ) -> dict[str, Any]:
        ledger = self._ledger
        statuses: dict[str, int] = {}
        for status in ledger.ended.values():
            statuses[status] = statuses.get(status, 0) + 1
        promises: dict[str, int] = {}
        for violation in ledger.violations:
            promises[violation.promise] = promises.get(violation.promise, 0) + 1
            self._say(f"VIOLATED {violation.promise}: {violation.detail}")
        return {
            "faults": sum(storm.injected.values()),
            "violations": len(ledger.violations),
            "by_promise": promises,
            "by_kind": dict(sorted(storm.injected.items())),
            "found_nothing_to_hit": storm.missed,
            "checked": dict(sorted(checked.items())),
            "never_put_to_the_test": [name for name in NEEDED if not checked[name]],
            "acknowledged": dict(sorted(ledger.acknowledged.items())),
            "searches": dict(sorted(statuses.items())),
            "cancelled_at_the_end": cancelled,
            "answers": dict(sorted(ledger.answers.items())),
            "starts": {name: part.starts for name, part in made.parts.items()},
            "left_by_themselves": {
                name: part.deaths_of_its_own
                for name, part in made.parts.items()
                if part.deaths_of_its_own
            },
            "disk": made.disk.kind,
            "clock": "preloaded" if "clock_step" in storm.injected else "not stepped",
        }

    def _keep_evidence(self, made: World) -> None:
        if self._keep is None:
            return
        shutil.rmtree(self._keep, ignore_errors=True)
        shutil.copytree(made.logs, self._keep)
        shutil.copy(self._log_path, self._keep)
        for path in made.home.glob("tailor.db*"):
            shutil.copy(path, self._keep)


def _model(caller: Caller, target: str) -> dict[str, Any] | None:
    """The latency model that prices searches on a target."""
    answer = caller.ask("GET", "/v1/latency-models", params={"target": target})
    items = answer.json()["items"] if answer is not None and answer.is_success else []
    return next((item for item in items if item["active"]), None)


def _budget(target: str, band: dict[str, Any], share: float) -> dict[str, Any]:
    """A target and a budget at that share of its band."""
    fastest_ms, slowest_ms = band["fastest_ms"], band["slowest_ms"]
    return {
        "target": target,
        "latency_budget_ms": fastest_ms + share * (slowest_ms - fastest_ms),
    }


def _wish(name: str, budgets: dict[str, Any], *, seed: int = 0, comparable: bool = True) -> Wish:
    spec = {
        **budgets,
        "search_space": SPACE,
        "epochs": _EPOCHS,
        "seed": seed,
        "random_baseline": False,
        "hand_made_baseline": False,
    }
    return Wish(name, spec, comparable)


def _twice(devices: Sequence[ScriptedDevice]) -> tuple[float, Inject]:
    def inject(_: World, __: Fault, rng: random.Random) -> dict[str, Any]:
        device = rng.choice(devices)
        device.upload_next_twice()
        return {"device": device.agent_id}

    return 1.0, inject


if __name__ == "__main__":
    sys.exit(main())
