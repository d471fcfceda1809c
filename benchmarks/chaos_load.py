"""What goes on while things break: people, a follower, scripted devices; and what they were told.

`Ledger` is the client's side of the story: every answer of success that anybody was given. What
it says must be found in the store at the end, once.
"""

import hashlib
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpx

from benchmarks.chaos_faults import Fault, Inject, Nothing
from benchmarks.chaos_world import World
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space
from service.client.client import Client
from service.client.errors import ApiError, TailorClientError
from service.searches.schemas import TERMINAL

Answer = TypeVar("Answer")

_REQUEST_SECONDS = 6.0
_PASSING = (429, 500, 502, 503, 504)
_POOL = 6
"""How many searches are unfinished at a time."""

_PROFILE = {
    "device_model": "a script",
    "machine": "x86_64",
    "system": "none",
    "runtime": "arithmetic",
    "runtime_version": "1",
    "execution_provider": "none",
    "threads": 1,
    "precision": "float32",
    "batch": 1,
    "clock_state": "unmanaged",
}


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    detail: str


@dataclass
class Ledger:
    """What clients and devices were told, and what they saw; for any number of threads.

    Attributes:
        asked: specs by idempotency key, whether or not an answer came.
        created: search ids by idempotency key, of those that were acknowledged.
        measured: latencies in ms by task, of those that were acknowledged.
        events: digests of events seen, by search and number.
        ended: the terminal status seen, by search.
        files: sha256 of files seen, by search and name.
        answers: how often each status was answered.
    """

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    events: dict[str, dict[int, str]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def violated(self, promise: str, detail: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.violations.append(Violation(promise, detail))

    def note_created(self, key: str, search_id: str) -> None:
        """A creation was acknowledged; a key must always give the same search."""
        with self._lock:
            if self.created.setdefault(key, search_id) != search_id:
                self.violated("one search a key", f"{key} gave {self.created[key]} and {search_id}")

    def note_measured(self, task_id: str, latency_ms: float) -> None:
        """A measurement was acknowledged."""
        with self._lock:
            if task_id in self.measured:
                self.violated("one measurement a task", f"{task_id} was accepted twice")
            self.measured[task_id] = latency_ms

    def note_events(self, search_id: str, after: int, items: Sequence[dict[str, Any]]) -> None:
        """Events were read: they are dense, and the same as ever."""
        with self._lock:
            seen = self.events.setdefault(search_id, {})
            for expected, event in enumerate(items, after + 1):
                number, now = event["number"], digest(event)
                if number != expected:
                    self.violated("dense events", f"{search_id}: {number} instead of {expected}")
                if seen.setdefault(number, now) != now:
                    self.violated("events never change", f"{search_id}: event {number}")

    def note_search(self, search: dict[str, Any]) -> None:
        """A search was read: what has ended stays as it ended."""
        if search["status"] in TERMINAL:
            with self._lock:
                before = self.ended.setdefault(search["id"], search["status"])
                if before != search["status"]:
                    self.violated(
                        "terminal never changes", f"{search['id']}: {before}, {search['status']}"
                    )

    def note_files(self, search_id: str, items: Sequence[dict[str, Any]]) -> None:
        """The files of a search were listed."""
        with self._lock:
            seen = self.files.setdefault(search_id, {})
            for item in items:
                if seen.setdefault(item["name"], item["sha256"]) != item["sha256"]:
                    self.violated("files never change", f"{search_id}: {item['name']}")

    def count(self, answer: httpx.Response | None) -> None:
        """Count an answer, or that none came."""
        with self._lock:
            self.answers["none" if answer is None else str(answer.status_code)] += 1

    def did(self, what: str) -> None:
        """Count something that was acknowledged."""
        with self._lock:
            self.acknowledged[what] += 1

    @property
    def unfinished(self) -> list[str]:
        """Acknowledged searches that nobody has seen the end of."""
        with self._lock:
            return [s for s in self.created.values() if s not in self.ended]


class Caller:
    """Asks an API, whichever answers, until there is an answer that means something."""

    def __init__(self, urls: Sequence[str], token: str, ledger: Ledger) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._clients = [
            httpx.Client(base_url=url, headers=headers, timeout=_REQUEST_SECONDS) for url in urls
        ]
        self._ledger = ledger

    def close(self) -> None:
        """Release the sockets."""
        for client in self._clients:
            client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        allowed: Sequence[int] = (),
        patience_seconds: float = 30.0,
        first: int | None = None,
        **arguments: Any,
    ) -> httpx.Response | None:
        """The answer, or None when none came in time; what fails in passing is asked again.

        Args:
            allowed: answers other than success that are right; any other is a violation.
            first: which API is asked first.
        """
        deadline = time.monotonic() + patience_seconds
        turn = random.randrange(len(self._clients)) if first is None else first
        while True:
            answer = self._once(self._clients[turn % len(self._clients)], method, path, arguments)
            if answer is not None and answer.status_code not in _PASSING:
                if not answer.is_success and answer.status_code not in allowed:
                    said = f"{method} {path}: {answer.status_code} {answer.text[:300]}"
                    self._ledger.violated("right requests are answered", said)
                return answer
            if time.monotonic() > deadline:
                return None
            turn += 1
            time.sleep(0.2)

    def _once(
        self, client: httpx.Client, method: str, path: str, arguments: dict[str, Any]
    ) -> httpx.Response | None:
        answer = None
        with suppress(httpx.HTTPError):
            answer = client.request(method, path, **arguments)
        self._ledger.count(answer)
        return answer


# -- devices ---------------------------------------------------------------------------


class ScriptedDevice:
    """A device whose latency is a formula of the file, so that its searches can be compared.

    Every file deviates from the formula by up to 2 %, always the same way: some certificates
    fail, and always the same.

    Args:
        factor: how much slower than the formula.
    """

    def __init__(
        self, world: World, caller: Caller, ledger: Ledger, name: str, factor: float = 1.0
    ) -> None:
        code = _document(caller.ask("POST", "/v1/enrolment-codes"))["code"]
        body = {
            "code": code,
            "name": name,
            "agent_version": "1",
            "profiles": [{**_PROFILE, "device_model": name}],
        }
        made = _document(caller.ask("POST", "/v1/agents", json=body))
        self.agent_id, self.target_id = made["id"], made["target_ids"][0]
        self._caller = Caller(world.urls, made["token"], ledger)
        self._ledger, self._factor = ledger, factor
        self._twice = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def upload_next_twice(self) -> None:
        """Send the next upload twice at once."""
        self._twice.set()

    def close(self) -> None:
        """Stop measuring."""
        self._stop.set()
        self._thread.join()
        self._caller.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            body = {"limit": 16, "wait_seconds": 2.0}
            answer = self._caller.ask(
                "POST", "/v1/measurement-tasks/lease", json=body, patience_seconds=5.0
            )
            tasks = answer.json()["items"] if answer is not None and answer.is_success else []
            if tasks:
                self._upload(tasks)

    def _upload(self, tasks: list[dict[str, Any]]) -> None:
        latencies = {task["id"]: self._factor * formula_ms(task) for task in tasks}
        items = [_result(task, latencies[task["id"]]) for task in tasks]
        body = {"batch_id": uuid.uuid4().hex, "items": items}
        copies = 2 if self._twice.is_set() else 1
        self._twice.clear()
        answers = at_once(copies, partial(self._send, body))
        if not all(answer.json() == answers[0].json() for answer in answers):
            self._ledger.violated("an upload has one answer", body["batch_id"])
        for item in answers[0].json()["items"] if answers[0].is_success else ():
            if item["accepted"]:
                self._ledger.note_measured(item["task_id"], latencies[item["task_id"]])

    def _send(self, body: dict[str, Any], first: int) -> httpx.Response:
        """As an agent does: until it is acknowledged."""
        while True:
            answer = self._caller.ask("POST", "/v1/measurements", json=body, first=first)
            if answer is not None:
                return answer


def formula_ms(task: dict[str, Any]) -> float:
    """What a scripted device takes for a leased task's file."""
    kind, rest = task["subject"].split(":", 1)
    if kind == "block":
        text, copies = rest.rsplit(":x", 1)
        blocks = [BlockSpec.parse(text)] * int(copies)
    else:
        name, text = rest.split(":", 1)
        space = get_space(name.split("@")[0])
        blocks = list(space.blocks(space.parse(text)))
    exact_ms = 0.01 + sum(1e-3 + block.macs * 1e-8 for block in blocks)
    chance = hashlib.sha256(f"{task['model_sha256']} {task['effort']}".encode()).digest()
    return exact_ms * (1.0 + 0.04 * (int.from_bytes(chance[:4]) / 2**32 - 0.5))


def _result(task: dict[str, Any], latency_ms: float) -> dict[str, Any]:
    return {
        "task_id": task["id"],
        "fence": task["fence"],
        "model_sha256": task["model_sha256"],
        "measurement": {
            "latency_ms": latency_ms,
            "p10_ms": latency_ms * 0.99,
            "p90_ms": latency_ms * 1.01,
            "sigma_ms": latency_ms * 1e-3,
            "n": 100,
            "thread_cpu_ms": latency_ms,
            "contended_share": 0.0,
            "anchor_ms": 0.01,
            "provider": "none",
            "measured_at": datetime.now(UTC).isoformat(),
            "grade": "A",
            "flagged": False,
            "note": "",
            "quarantined": [],
            "protocol_version": 2,
            "unit": "ms",
            "facts": {},
        },
    }


# -- people ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """A search that people ask for again and again; all of them must find the same.

    Attributes:
        comparable: its target answers by formula.
        path: where it is asked for.
    """

    name: str
    spec: dict[str, Any]
    comparable: bool = True
    path: str = "/v1/searches"


class People:
    """Create, pause, resume, cancel, derive and look, without a pause.

    Attributes:
        stopped: set when they ask for nothing more.
    """

    def __init__(
        self, world: World, ledger: Ledger, wishes: Sequence[Wish], seed: int, actions: set[str]
    ) -> None:
        self._world, self._ledger = world, ledger
        self.wishes = list(wishes)
        self.wish_of: dict[str, Wish] = {}  # by search
        self._actions = actions
        self._rng = random.Random(seed)
        self._caller = Caller(world.urls, world.key, ledger)
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=self._live, daemon=True) for _ in range(2)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for nothing more."""
        self.stopped.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Release the sockets."""
        self._caller.close()

    def create(self, wish: Wish, copies: int = 1) -> str | None:
        """One search, asked for that many times at once; its id if anybody was told."""
        key = uuid.uuid4().hex
        self._ledger.asked[key] = wish.spec if wish.path == "/v1/searches" else {}
        headers = {"Idempotency-Key": key}

        def ask(first: int) -> httpx.Response | None:
            return self._caller.ask(
                "POST", wish.path, json=wish.spec, headers=headers, allowed=(409,), first=first
            )

        for answer in at_once(copies, ask):
            if answer is not None and answer.is_success:
                self._ledger.note_created(key, answer.json()["id"])
                self._ledger.did("create")
        search_id = self._ledger.created.get(key)
        if search_id is not None:
            self.wish_of[search_id] = wish
        return search_id

    def act(self, search_id: str, action: str, copies: int = 1) -> None:
        """Cancel, pause or resume, that many times at once."""
        path = f"/v1/searches/{search_id}/{action}"

        def ask(first: int) -> httpx.Response | None:
            return self._caller.ask("POST", path, allowed=(409,), first=first)

        for answer in at_once(copies, ask):
            if answer is not None and answer.is_success:
                self._ledger.note_search(answer.json())
                self._ledger.did(action)

    def read(self, search_id: str) -> dict[str, Any] | None:
        """A search as it is now."""
        answer = self._caller.ask("GET", f"/v1/searches/{search_id}")
        if answer is None or not answer.is_success:
            return None
        found: dict[str, Any] = answer.json()
        self._ledger.note_search(found)
        return found

    def has_ended(self, search_id: str) -> bool:
        """Whether a search has ended, as far as anybody answers."""
        return (self.read(search_id) or {}).get("status") in TERMINAL

    def faults(self) -> dict[str, tuple[float, Inject]]:
        """Requests that arrive several times at once, as faults of a storm."""

        def create(_: World, __: Fault, rng: random.Random) -> dict[str, Any]:
            copies = rng.randint(2, 4)
            return {"search": self.create(rng.choice(self.wishes), copies), "copies": copies}

        def act(_: World, __: Fault, rng: random.Random) -> dict[str, Any]:
            unfinished = self._ledger.unfinished
            if not unfinished:
                raise Nothing
            search_id, copies = rng.choice(unfinished), rng.randint(2, 3)
            weights = {"cancel": 1, "pause": 2, "resume": 2}
            offered = sorted(self._actions & weights.keys())
            (action,) = rng.choices(offered, [weights[a] for a in offered])
            self.act(search_id, action, copies)
            return {"search": search_id, "action": action, "copies": copies}

        return {"duplicate_create": (2.0, create), "duplicate_action": (2.0, act)}

    def _live(self) -> None:
        while not self.stopped.is_set():
            unfinished = self._ledger.unfinished
            if len(unfinished) < _POOL:
                self.create(self._any_wish())
            else:
                self._meddle(self._rng.choice(unfinished))
            self.stopped.wait(self._rng.expovariate(1.0))

    def _any_wish(self) -> Wish:
        """One of the wishes, as a new search, a copy of an earlier one, or derived from it."""
        wish = self._rng.choice(self.wishes)
        if not wish.comparable or self._rng.random() < 0.6:
            return wish
        ended = [s for s, w in list(self.wish_of.items()) if w == wish and s in self._ledger.ended]
        if not ended:
            return wish
        parent = self._rng.choice(ended)
        if self._ledger.ended[parent] == "succeeded" and self._rng.random() < 0.7:
            return self.derived(wish, parent)
        return self.cloned(wish, parent)

    def derived(self, wish: Wish, parent: str) -> Wish:
        """Two other budgets from the supernet of a search, if that is to be had."""
        if "derive" not in self._actions or "latency_budget_ms" not in wish.spec:
            return wish
        budgets_ms = [share * wish.spec["latency_budget_ms"] for share in (0.9, 1.1)]
        return Wish(
            f"derived, {wish.name}",
            {"budgets_ms": budgets_ms},
            path=f"/v1/searches/{parent}/derive",
        )

    def cloned(self, wish: Wish, parent: str) -> Wish:
        """The same search once more, if that is to be had."""
        if "clone" not in self._actions:
            return wish
        return replace(wish, spec={}, path=f"/v1/searches/{parent}/clone")

    def _meddle(self, search_id: str) -> None:
        found = self.read(search_id)
        if found is None:
            return
        if found["status"] == "paused":
            if self._rng.random() < 0.7:
                self.act(search_id, "resume")
        elif self._rng.random() < 0.15 and "pause" in self._actions:
            self.act(search_id, "pause")
        elif self._rng.random() < 0.02:
            self.act(search_id, "cancel")


class Follower:
    """Reads every event of every search as it comes, and looks again at old ones."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._ledger = ledger
        self._caller = Caller(world.urls, world.key, ledger)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no more."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """Release the sockets."""
        self._caller.close()

    def look(self, search_id: str, after: int = 0) -> None:
        """Read all events after a number, and the search."""
        while True:
            path, asked = f"/v1/searches/{search_id}/events", {"after": after, "limit": 200}
            answer = self._caller.ask("GET", path, params=asked, patience_seconds=5.0)
            if answer is None or not answer.is_success:
                return
            items = answer.json()["items"]
            self._ledger.note_events(search_id, after, items)
            if len(items) < 200:
                break
            after = items[-1]["number"]
        answer = self._caller.ask("GET", f"/v1/searches/{search_id}", patience_seconds=5.0)
        if answer is None or not answer.is_success:
            return
        self._ledger.note_search(answer.json())
        if answer.json()["status"] == "succeeded":
            files = self._caller.ask(
                "GET", f"/v1/searches/{search_id}/artifacts", patience_seconds=5.0
            )
            if files is not None and files.is_success:
                self._ledger.note_files(search_id, files.json()["items"])

    def _follow(self) -> None:
        rng = random.Random()
        while not self._stop.is_set():
            for search_id in self._ledger.unfinished:
                seen = self._ledger.events.get(search_id, {})
                self.look(search_id, max(seen, default=0))
            every = list(self._ledger.created.values())
            if every:
                self.look(rng.choice(every))
            self._stop.wait(1.0)


class Listener:
    """Hears of one search after the other over the client's stream, which must outlast all."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._ledger, self._clients = ledger, [Client(url, world.key) for url in world.urls]
        self.heard = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _listen(self) -> None:
        rng = random.Random()
        while not self._stop.wait(0.1):
            unfinished = self._ledger.unfinished
            if unfinished:
                self._hear_out(rng.choice(unfinished), rng)

    def _hear_out(self, search_id: str, rng: random.Random) -> None:
        after = 0
        while not self._stop.is_set():
            try:
                for event in rng.choice(self._clients).stream(search_id, after=after):
                    told = event.model_dump(mode="json")
                    self._ledger.note_events(search_id, after, [told])
                    after = event.number
                    self.heard += 1
            except TailorClientError as error:
                if isinstance(error, ApiError) and error.status not in _PASSING:
                    self._ledger.violated("right requests are answered", f"stream: {error}")
                    return
            else:
                return


def at_once(copies: int, call: Callable[[int], Answer]) -> list[Answer]:
    """What `call` returns for 0, 1, ..., all called at the same time."""
    with ThreadPoolExecutor(copies) as pool:
        return list(pool.map(call, range(copies)))


def digest(document: Any) -> str:
    """The same for equal JSON."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _document(answer: httpx.Response | None) -> dict[str, Any]:
    if answer is None or not answer.is_success:
        raise SystemExit(f"the installation cannot be prepared: {answer and answer.text}")
    found: dict[str, Any] = answer.json()
    return found
