"""What every launcher promises."""

from typing import Protocol

from service.jobs.repository import Claim

EXIT_HANDED_BACK = 75
EXIT_LEASE_LOST = 76
EXIT_OUT_OF_MEMORY = 77


class Handle(Protocol):
    """A running attempt."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        ...

    def hand_back(self) -> None:
        """Ask it to checkpoint and leave; returns at once, and asking twice is harmless."""
        ...

    def memory_bytes(self) -> int:
        """The main memory that it and everything it started hold now; 0 when it has ended."""
        ...

    def kill(self) -> None:
        """End it now, with everything it started; returns when it is gone."""
        ...


class Launcher(Protocol):
    """Runs attempts.

    Guarantees of every implementation:

    - the attempt runs ``service.attempt`` with the claim's job and fence, in another process,
      which sees the GPUs it was given and no other;
    - `poll` tells its exit status, and a negative number or one above 128 when it was killed;
    - once `poll` has told it, nothing that the attempt started runs any more;
    - an attempt whose worker dies learns of it and stops;
    - a launcher never runs an attempt again by itself: retries are the queue's alone.
    """

    def launch(self, claim: Claim) -> Handle:
        """Start an attempt."""
        ...

    def close(self) -> None:
        """Release what the launcher holds; attempts still running are killed."""
        ...
