"""What every launcher promises."""

from typing import Protocol

from service.jobs.repository import Claim

EXIT_HANDED_BACK = 75
EXIT_LEASE_LOST = 76


class Handle(Protocol):
    """A running attempt."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        ...

    def hand_back(self) -> None:
        """Ask it to checkpoint and leave; returns at once, and asking twice is harmless."""
        ...

    def kill(self) -> None:
        """End it now, with everything it started; returns when it is gone."""
        ...


class Launcher(Protocol):
    """Runs attempts.

    Guarantees of every implementation:

    - the attempt runs ``service.attempt`` with the claim's job and fence, in another process;
    - `poll` tells its exit status, and a negative number or one above 128 when it was killed;
    - an attempt whose worker dies learns of it and stops;
    - a launcher never runs an attempt again by itself: retries are the queue's alone.
    """

    def launch(self, claim: Claim) -> Handle:
        """Start an attempt."""
        ...

    def close(self) -> None:
        """Release what the launcher holds; attempts still running are killed."""
        ...
