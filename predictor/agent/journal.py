"""Results that the server has not acknowledged yet, kept on disk until it does."""

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class JournalEntry:
    """One batch exactly as it is uploaded; `batch_id` makes a repeated upload harmless."""

    batch_id: str
    items: list[dict[str, Any]]


class Journal:
    """One file a batch in a folder; written and synced before the upload is tried.

    What cannot be written, because the disk is full, is kept in memory and uploaded all the
    same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unwritten: dict[str, JournalEntry] = {}
        self._lock = threading.Lock()  # heartbeats count what the loop adds and discards
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, entry: JournalEntry) -> bool:
        """Keep `entry` across a crash or a reboot; the same batch again replaces it.

        Returns:
            Whether it is on disk; if not, it is in memory alone until it is uploaded.
        """
        with self._lock:
            return self._add(entry)

    def pending(self) -> list[JournalEntry]:
        """Every unacknowledged batch, oldest first; a file that cannot be read is set aside."""
        with self._lock:
            return self._pending()

    def discard(self, batch_id: str) -> None:
        """Forget a batch that the server has stored or finally refused."""
        with self._lock:
            self._unwritten.pop(batch_id, None)
            with suppress(OSError):  # uploaded again after a restart, which is harmless
                self._path(batch_id).unlink(missing_ok=True)

    def _add(self, entry: JournalEntry) -> bool:
        partial = self._folder / f"{entry.batch_id}.partial"
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump({"batch_id": entry.batch_id, "items": entry.items}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(entry.batch_id))
            self._sync_folder()
        except OSError:
            self._unwritten[entry.batch_id] = JournalEntry(entry.batch_id, list(entry.items))
            with suppress(OSError):
                partial.unlink(missing_ok=True)  # its bytes may be what the next one needs
            return False
        self._unwritten.pop(entry.batch_id, None)
        return True

    def _pending(self) -> list[JournalEntry]:
        found = {}
        for path in sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                if document["batch_id"] != path.stem:
                    raise ValueError("another batch's content")
                found[path.stem] = JournalEntry(path.stem, document["items"])
            except (ValueError, KeyError, TypeError):
                with suppress(OSError):
                    path.replace(path.with_suffix(".damaged"))
        return list((found | self._unwritten).values())

    def _path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}.json"

    def _sync_folder(self) -> None:
        """Make the new name itself outlast a power cut, where folders can be synced."""
        if os.name != "posix":
            return
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
