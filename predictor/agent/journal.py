"""Results that the server has not acknowledged yet, kept on disk until it does."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class JournalEntry:
    """One batch exactly as it is uploaded; `batch_id` makes a repeated upload harmless."""

    batch_id: str
    items: list[dict[str, Any]]


class Journal:
    """One file a batch in a folder; written and synced before the upload is tried."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, entry: JournalEntry) -> None:
        """Keep `entry` across a crash or a reboot; the same batch again replaces it."""
        partial = self._folder / f"{entry.batch_id}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"batch_id": entry.batch_id, "items": entry.items}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path(entry.batch_id))

    def pending(self) -> list[JournalEntry]:
        """Every unacknowledged batch, oldest first."""
        paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [JournalEntry(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def discard(self, batch_id: str) -> None:
        """Forget a batch that the server has stored or finally refused."""
        self._path(batch_id).unlink(missing_ok=True)

    def _path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}.json"
