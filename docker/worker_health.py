"""Whether a worker of this container has lately shown itself to the store: exit status 0 or 1."""

import socket
import sys

from service.db.database import Database
from service.settings import Settings
from service.workers.repository import list_workers

_MOST_WORKERS = 1000


def is_healthy(settings: Settings) -> bool:
    """Whether the store answers and a worker on this host is online in it."""
    database = Database(settings.resolved_database_url)
    with database.reading() as session:
        online = list_workers(session, None, _MOST_WORKERS, settings.worker_offline_seconds)
    database.dispose()
    return any(worker.host == socket.gethostname() for worker in online)


if __name__ == "__main__":
    sys.exit(not is_healthy(Settings()))
