"""The agent's loop: lease, measure, journal, upload. Read this first."""

import random
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx

from predictor.agent.connection import Connection, LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.results import Measures, Try, failure, in_words, one_try, settled
from predictor.errors import NotAuthenticError, TaskFailedError
from predictor.measurements import TargetProfile

AGENT_VERSION = version("tailor-nas")
_LEASE_LIMIT = 8
_FIRST_SECONDS = 1.0  # between heartbeats while none has got through


class Agent:
    """Measures what the API leases, for every target it was enrolled for.

    Args:
        targets: what measures, and as what profile, by target id.
        say: hears one line for each task and upload.
        poll_seconds: how long one lease request may wait for work.
    """

    def __init__(
        self,
        connection: Connection,
        journal: Journal,
        targets: Mapping[str, tuple[TargetProfile, Measures]],
        *,
        say: Callable[[str], None],
        poll_seconds: float = 10.0,
    ) -> None:
        self._connection = connection
        self._journal = journal
        self._targets = targets
        self._say = say
        self._poll_seconds = poll_seconds
        self._activity = "starting"
        self._held: list[str] = []
        self._drain = threading.Event()
        self._told = set[str]()  # what the service said of our targets

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until `should_stop` or until drained; nothing measured is ever lost.

        Args:
            should_stop: asked between two tasks.
        """
        with self._heartbeats():
            while True:
                try:
                    self._upload_pending()
                    if self._drain.is_set():
                        self._say("drained: the last task is done and uploaded")
                        return
                    if should_stop():
                        return
                    self._activity = "waiting for work"
                    lease = self._connection.lease(_LEASE_LIMIT, self._poll_seconds)
                    if lease.draining:
                        self._drain.set()
                    self._held = [task.id for task in lease.tasks]
                    self._work_off(lease.tasks, lambda: should_stop() or self._drain.is_set())
                except httpx.HTTPError as error:
                    self._say(f"the API is out of reach, trying again: {error}")
                    if should_stop():
                        return

    def _work_off(self, tasks: list[LeasedTask], should_stop: Callable[[], bool]) -> None:
        """Measure `tasks` in random order; what was too noisy comes last again."""
        random.shuffle(tasks)  # drift must not line up with the order of a kit
        batch_id, items = uuid.uuid4().hex, list[dict[str, Any]]()
        tries: dict[str, list[Try]] = {task.id: [] for task in tasks}
        waiting = list(tasks)
        while waiting and not should_stop():
            task = waiting.pop(0)
            self._activity = task.subject[:200]
            try:
                result = settled(self._try(task), tries[task.id])
            except TaskFailedError as error:
                result = failure(error.code, error.reason, error.detail)
            except (NotAuthenticError, ServerRefusedError) as error:
                result = failure("unsupported", "not_authentic", str(error))
            if result is None:
                waiting.append(task)
                continue
            self._say(f"{task.subject}: {in_words(result)}")
            items.append(
                {
                    "task_id": task.id,
                    "fence": task.fence,
                    "model_sha256": task.model_sha256,
                    **result,
                }
            )
            if not self._journal.add(JournalEntry(batch_id, items)):  # else kept if we die now
                self._say("the journal cannot be written; results are in memory until uploaded")
                self._upload_pending()
                batch_id, items = uuid.uuid4().hex, []

    def _try(self, task: LeasedTask) -> Try:
        _, stopwatch = self._targets[task.target_id]
        self._connection.check_signature(task)
        anchor = self._connection.download(task.anchor_sha256)
        model = self._connection.download(task.model_sha256)
        return one_try(stopwatch, model, task.anchor_sha256, anchor, task.effort)

    def _upload_pending(self) -> None:
        for entry in self._journal.pending():
            try:
                report = self._connection.upload(entry)
            except ServerRefusedError as error:
                self._say(f"batch {entry.batch_id[:8]} was refused: {error}")
            else:
                for item in report["items"]:
                    if not item["accepted"]:
                        self._say(f"{item['task_id']}: not accepted: {item['reason']}")
            self._journal.discard(entry.batch_id)

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Meanwhile, a thread tells the API that this agent lives, and hears what it wants."""
        stop = threading.Event()
        seconds = self._beat_once()  # before the first lease: the service must know our version
        thread = threading.Thread(target=self._beat, args=(stop, seconds), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, stop: threading.Event, seconds: float) -> None:
        while not stop.wait(seconds):
            seconds = self._beat_once()

    def _beat_once(self) -> float:
        """One sign of life; after how many seconds the next is due."""
        try:
            answer = self._connection.heartbeat(
                AGENT_VERSION,
                self._activity,
                len(self._journal.pending()),
                {target: profile for target, (profile, _) in self._targets.items()},
                self._held,
            )
        except (httpx.HTTPError, ServerRefusedError, OSError):
            return _FIRST_SECONDS  # the loop meets the same trouble and says so
        if answer["draining"]:
            self._drain.set()
        for stale in answer["stale"]:
            if stale["text"] not in self._told:
                self._told.add(stale["text"])
                self._say(f"{stale['target_id']}: {stale['text']}")
        seconds: float = answer["heartbeat_seconds"]
        return seconds
