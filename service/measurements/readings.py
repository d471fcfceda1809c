"""What the agents of a target say together of what was measured there."""

from collections.abc import Mapping, Sequence

from predictor.consensus import Consensus, Reading, consensus
from service.measurements.models import Measurement


def current(rows: Sequence[Measurement], tasks: Mapping[str, str]) -> list[Measurement]:
    """Those measured since their subject was last asked for.

    What was measured before is about a device that has changed since.

    Args:
        tasks: the latest task by subject; subjects without one are kept.
    """
    return [row for row in rows if row.task_id >= tasks.get(row.subject, "")]


def weigh(rows: Sequence[Measurement]) -> Consensus:
    """One latency a subject, and which agents to believe."""
    return consensus(Reading(r.subject, r.agent_id, r.latency_ms, r.flagged) for r in rows)
