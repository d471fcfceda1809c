"""Calls about machines, workers and search spaces."""

from service.client.asking import Ask, Steps, get, listed
from service.machines.schemas import MachineRead
from service.spaces.schemas import SpaceList, SpaceRead
from service.workers.schemas import WorkerRead


def machines() -> Steps[list[MachineRead]]:
    """The machines that have run workers, newest first."""
    return (yield from listed("/v1/machines", MachineRead))


def workers(*, online: bool = False) -> Steps[list[WorkerRead]]:
    """The workers, newest first, with what runs on them.

    Args:
        online: only those that are there.
    """
    return (yield from listed("/v1/workers", WorkerRead, online=online))


def worker(worker_id: str) -> Steps[WorkerRead]:
    """One worker."""
    return (yield from get(f"/v1/workers/{worker_id}", WorkerRead))


def drain_worker(worker_id: str, *, hand_back: bool = False) -> Steps[WorkerRead]:
    """Let a worker take no new work, and leave once nothing runs; needs an operator's key.

    Args:
        hand_back: checkpoint and hand back what runs, instead of finishing it.
    """
    path = f"/v1/workers/{worker_id}/drain"
    answer = yield Ask("POST", path, params={"hand_back": hand_back})
    return WorkerRead.model_validate(answer.json())


def search_spaces() -> Steps[list[SpaceRead]]:
    """Every search space."""
    return (yield from get("/v1/search-spaces", SpaceList)).items
