"""What people see while a search runs and when it has ended."""

from collections.abc import Callable, Sequence

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.cli.connection import EXIT_STATUS, print_json, print_text
from service.client.client import Client
from service.searches.schemas import (
    TERMINAL,
    Baseline,
    EffortRead,
    NetworkResult,
    Point,
    Reproduction,
    Result,
    SearchRead,
)

_PHASES = {
    "starting": "starting the attempt",
    "awaiting_measurements": "waiting for measurements",
    "waiting_for_worker": "waiting for a worker",
    "searching": "searching",
    "deriving": "deciding under the budget",
    "training": "training the child on",
    "verifying": "measuring the very file",
    "comparing": "training the baselines",
}

_HALTS = {
    "pausing": "pausing at its next step",
    "paused": "paused, until it is resumed",
    "cancelling": "stopping at its next step",
}


class PhaseLines:
    """One live line a phase: what it is, how far, its latest number, its time."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]:<29}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._current: TaskID | None = None
        self._progress.start()

    def begin(self, description: str) -> None:
        """End the current line and begin another."""
        self.end()
        self._current = self._progress.add_task(description, total=None, note="")

    def update(self, completed: float, total: float, note: str = "") -> None:
        """Move the current line."""
        if self._current is not None:
            self._progress.update(self._current, completed=completed, total=total, note=note)

    def note(self, text: str) -> None:
        """Change what the current line says at its end."""
        if self._current is not None:
            self._progress.update(self._current, note=text)

    def end(self, note: str | None = None) -> None:
        """Complete the current line."""
        if self._current is None:
            return
        task = next(t for t in self._progress.tasks if t.id == self._current)
        total = task.total or 1.0
        self._progress.update(self._current, total=total, completed=total)
        if note is not None:
            self._progress.update(self._current, note=note)
        self._progress.stop_task(self._current)
        self._current = None

    def close(self) -> None:
        """End the last line and release the terminal."""
        self.end()
        self._progress.stop()


def follow_search(client: Client, search_id: str, console: Console) -> SearchRead:
    """Show a search's events until it ends, and return it."""
    lines = PhaseLines(console)
    try:
        follow_events(client, search_id, lines)
    finally:
        lines.close()
    return client.search(search_id)


def follow_events(
    client: Client,
    search_id: str,
    lines: PhaseLines,
    on_quiet: Callable[[], None] | None = None,
) -> None:
    """Turn a search's events into lines until it ends.

    They are streamed, or polled when `on_quiet` is to be called, see `Client.events`.
    """
    budgets = client.search(search_id).spec.budgets
    budget_ms = budgets[0].latency_budget_ms if len(budgets) == 1 else None
    told = client.events(search_id, on_quiet=on_quiet) if on_quiet else client.stream(search_id)
    for event in told:
        data = event.data
        if event.type == "phase" and data["phase"] in _PHASES:
            lines.begin(_PHASES[data["phase"]])
        elif event.type == "status" and data["status"] in _HALTS:
            lines.begin(_HALTS[data["status"]])
        elif event.type == "measurement":
            share = f", {data['median_ms'] / budget_ms:.0%} of budget" if budget_ms else ""
            lines.note(f"{data['median_ms']:.4f} ms{share}")
        elif event.type == "metrics" and "latency_current" in data:
            note = f"loss {data['train_loss']:.2f}, now {data['latency_current']:.4f} ms"
            lines.update(data["step"], data["total"], note)
        elif event.type == "metrics":
            lines.update(data["step"], data["total"], f"loss {data['train_loss']:.2f}")


def finish(
    client: Client,
    search: SearchRead,
    *,
    wait: bool = False,
    follow: bool = False,
    minutes: float | None = None,
    json: bool,
) -> None:
    """Print a search, if asked to once it has ended; the exit status says then how.

    Raises:
        SearchTimeoutError: it had not ended within `minutes`.
    """
    if follow:
        search = follow_search(client, search.id, Console(stderr=True))
    elif wait:
        seconds = float("inf") if minutes is None else 60.0 * minutes
        search = client.wait(search.id, seconds)
    print_search(search, json=json)
    if search.status in TERMINAL and (wait or follow):
        raise typer.Exit(EXIT_STATUS[search.status])


def print_search(search: SearchRead, *, json: bool) -> None:
    """Print a search as people or programs read it."""
    if json:
        print_json(search)
    else:
        print_text(result_table(search))


def measured_ms(search: SearchRead) -> float | None:
    """What the network that a search found takes, where it was measured."""
    measured = search.result.network.measured if search.result else None
    return measured.median_ms if measured else None


def accuracy(search: SearchRead) -> str:
    """How accurate the network is that a search found, for people."""
    return fraction(search.result.network.test_accuracy if search.result else None)


def fraction(value: float | None) -> str:
    """An accuracy for people."""
    return "-" if value is None else f"{value:.4f}"


def result_table(search: SearchRead) -> Table:
    """A search for people: what was asked, what was found, beside networks nobody searched for."""
    table = Table(title=f"{search.id}: {search.status}", title_justify="left")
    table.add_column("")
    if search.result is None:
        table.add_column(search.phase.replace("_", " "))
        _add_asked(table, search)
        if search.estimated_finish_at is not None:
            table.add_row("expected to end", f"{search.estimated_finish_at:%Y-%m-%d %H:%M} UTC")
        return table
    baselines = search.result.baselines
    found, *others = _networks(search.result)
    table.add_column("network found" if search.status == "succeeded" else "nearest network")
    for kind in [baseline.kind for baseline in baselines] or ["random"] * len(others):
        table.add_column(_HEADINGS[kind])
    _add_asked(table, search)
    for name, cell in _CELLS.items():
        table.add_row(name, cell(found), *map(cell, others))
    if baselines:
        table.add_row("more accurate by", "", *map(_gap, baselines))
    _add_points(table, search.result.points)
    if search.result.reproduction is not None:
        table.add_section()
        _add_reproduction(table, search.result.reproduction)
    table.add_section()
    table.add_row(
        "seconds", f"{taken_seconds(search):.0f} in all", _phases(search.seconds_by_phase)
    )
    if search.feasibility is not None and search.feasibility.effort is not None:
        expected = search.feasibility.effort
        table.add_row(
            "seconds predicted",
            f"{expected.seconds:.0f} in all",
            _phases(expected.seconds_by_phase),
        )
    return table


_HEADINGS = {
    "random": "random, same budget and computation",
    "hand_made": "hand-made, same budget and computation",
}


def _networks(result: Result) -> Sequence[NetworkResult]:
    """The network found, then its baselines; of searches of older versions, the one there was."""
    if result.baselines or result.random_baseline is None:
        return [result.network, *result.baselines]
    return [result.network, result.random_baseline]


def _add_asked(table: Table, search: SearchRead) -> None:
    if search.status_reason is not None:
        table.add_row("reason", search.status_reason.text)
    several = len(search.spec.budgets) > 1
    for budget in search.spec.budgets:
        where = f" on {budget.target}" if several else ""
        table.add_row("budget", f"{budget.latency_budget_ms:.4f} ms{where}")


def _add_points(table: Table, points: Sequence[Point]) -> None:
    if points:
        table.add_section()
    for point in points:
        said = "verified" if point.verified else "not reached"
        measured = f"{_measured(point)}, accuracy {_accuracy(point)}, {said}"
        table.add_row(f"at {point.latency_budget_ms:.4f} ms", measured)


def _add_reproduction(table: Table, found: Reproduction) -> None:
    said = "the same to the last bit" if found.same else "; ".join(found.differs)
    table.add_row(f"compared with {found.of}", said)


def _gap(baseline: Baseline) -> str:
    if baseline.gap is None:
        return "-"
    low, high = baseline.gap.interval95
    return f"{baseline.gap.accuracy:+.4f} (95 % {low:+.4f} to {high:+.4f})"


def taken_seconds(search: SearchRead) -> float:
    """What a search has taken so far, waiting included."""
    return sum(search.seconds_by_phase.values())


def _phases(seconds_by_phase: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.0f}" for k, v in seconds_by_phase.items() if v >= 0.5)


def effort_table(effort: EffortRead) -> Table:
    """What a search is expected to cost, for people."""
    table = Table(title="expected, once a worker is free", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for phase, seconds in effort.seconds_by_phase.items():
        table.add_row(_PHASES.get(phase, phase), duration(seconds))
    table.add_section()
    table.add_row("in all", duration(effort.seconds))
    table.add_row("GPU-hours", f"{effort.gpu_hours:.3g}")
    table.add_row("core-hours", f"{effort.core_hours:.3g}")
    table.add_row("memory", f"{effort.memory_bytes / 2**20:,.0f} MiB")
    table.add_section()
    table.add_row("machine", f"{effort.machine_name}, {effort.threads} thread(s)")
    table.add_row("from", _basis(effort))
    return table


def _basis(effort: EffortRead) -> str:
    if effort.basis == "model":
        return "the machine's profile"
    return f"its profile and {effort.earlier_searches} earlier search(es)"


def duration(seconds: float) -> str:
    """A length of time for people: ``8.4 s``, ``12 min 30 s``, ``5 h 12 min``."""
    if seconds < 60.0:
        return f"{seconds:.1f} s" if seconds < 10.0 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _measured(network: NetworkResult) -> str:
    m = network.measured
    return f"{m.median_ms:.4f} ms (p90 {m.p90_ms:.4f}, n {m.n})" if m else "-"


def _accuracy(network: NetworkResult) -> str:
    return fraction(network.test_accuracy)


_CELLS: dict[str, Callable[[NetworkResult], str]] = {
    "measured": _measured,
    "predicted": lambda network: f"{network.predicted_ms:.4f} ms",
    "test accuracy": _accuracy,
    "architecture": lambda network: network.architecture,
    "parameters": lambda network: f"{network.parameters:,}",
    "MACs": lambda network: f"{network.macs:,}",
}
