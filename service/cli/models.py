"""`tailor models`: latency models, and how far to trust each."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, ms, print_json, print_table
from service.latency_models.schemas import LatencyModelRead

app = typer.Typer(help="Latency models and how far to trust them.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the model, lmd_...")]
_stdout = Console(soft_wrap=True, highlight=False)
_COLUMNS, _ROWS = 56, 16
_FEWEST_IN_A_THIRD = 3


class Judged(NamedTuple):
    """A network that was predicted without having been seen, in ms."""

    predicted_ms: float
    measured_ms: float


@app.command("list")
def list_models(
    target: Annotated[str | None, typer.Option(help="Only those of this target.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """List latency models, newest first."""
    with connect(url, api_key) as client:
        models = client.latency_models(target)
    if json:
        return print_json(models)
    print_table(
        ["id", "target", "space", "version", "active", "error", "within 10 %", "90 %", "stale"],
        [
            (
                m.id,
                m.target,
                m.search_space,
                m.version,
                "yes" if m.active else "no",
                f"{m.error:.1%}",
                _share((m.report.get("held_out") or {}).get("within_10")),
                _share((m.report.get("intervals") or {}).get("coverage")),
                m.stale["code"] if m.stale else None,
            )
            for m in models
        ],
    )
    return None


@app.command()
def show(model: Model, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a latency model: its errors on networks it never saw, its intervals, its promotion."""
    with connect(url, api_key) as client:
        found = client.latency_model(model)
    if json:
        return print_json(found)
    print_table(["", ""], _facts(found))
    judged, whose = _judged(found.report)
    if judged:
        _stdout.print(f"\n{len(judged)} networks {whose}, ms:")
        for line in parity(judged):
            _stdout.print(line)
        print_table(["third", "predicted", "networks", "error", "bias"], _by_third(judged))
    return None


@app.command()
def activate(model: Model, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Let a version price searches instead of the one that does; needs an admin's key."""
    with connect(url, api_key) as client:
        found = client.activate_latency_model(model)
    if json:
        return print_json(found)
    print_table(["", ""], _facts(found))
    return None


def _facts(model: LatencyModelRead) -> list[tuple[str, object]]:
    report = model.report
    facts: list[tuple[str, object]] = [
        ("id", model.id),
        ("target", model.target),
        ("space", model.search_space),
        ("version", f"{model.version}, {'active' if model.active else 'not active'}"),
        ("stale", model.stale["text"] if model.stale else None),
        ("networks take", f"{model.fastest_ms:.4g}-{ms(model.slowest_ms)}"),
        ("held out", _quality(report.get("held_out"))),
        ("left out in turn", _quality(report.get("leave_one_out"))),
    ]
    if intervals := report.get("intervals"):
        told = (
            f"promise {intervals['level']:.0%}, hold {intervals['coverage']:.0%} of the held-out "
            f"networks; {intervals['mean_half_width']:.1%} to each side on average"
        )
        facts.append(("intervals", told))
    if interactions := report.get("interactions"):
        facts.append(("interactions", "kept" if interactions["kept"] else "none that help"))
    if transfer := report.get("by_transfer"):
        told = (
            f"{len(transfer['references'])} other targets; {transfer['nearest']} is nearest, rank "
            f"correlation {transfer['rank_correlation']:.2f}"
        )
        facts.append(("learnt from", f"{told}; {transfer['warning']}".removesuffix("; ")))
    if predicted := report.get("predicted_blocks"):
        facts.append(("blocks predicted", f"{len(predicted)} of {report['n_blocks']}"))
    if spared := report.get("spared"):
        facts.append(("spared", f"{len(spared)} files that were not needed"))
    if following := report.get("next_networks"):
        facts.append(("would tell most", following[0]["architecture"]))
    if measured := report.get("measurements"):
        facts.append(("measurements", f"{measured['n']}, {measured['flagged']} of them flagged"))
    if unsupported := report.get("unsupported_blocks"):
        facts.append(("cannot run", ", ".join(unsupported)))
    if promotion := report.get("promotion"):
        verdict = "took over" if promotion["promoted"] else "did not take over"
        facts.append(("promotion", f"{verdict}: {promotion['reason']}"))
    facts.append(("rests on", ", ".join(f"{n} {v}" for n, v in sorted(model.versions.items()))))
    facts.append(("fitted", model.created_at))
    return [(name, escape(fact) if isinstance(fact, str) else fact) for name, fact in facts]


def _quality(found: dict[str, Any] | None) -> str | None:
    if not found:
        return None
    told = f"{found['mape']:.2%} error, {found['bias']:+.2%} bias"
    if "within_5" in found:
        told += f", {found['within_5']:.0%} within 5 %"
    return (
        f"{told}, {found['within_10']:.0%} within 10 %, rank correlation "
        f"{found['spearman']:.3f}, of {found['n']}"
    )


def _judged(report: dict[str, Any]) -> tuple[list[Judged], str]:
    """Networks that were predicted unseen, and which these are."""
    if held_out := report.get("held_out_networks"):
        return [Judged(n["predicted_ms"], n["measured_ms"]) for n in held_out], "it never saw"
    left_out = [
        Judged(n["left_out_prediction_ms"], n["measured_ms"]) for n in report.get("networks", ())
    ]
    return left_out, "left out in turn"


def parity(judged: Sequence[Judged]) -> list[str]:
    """A picture in characters: measured to the right, predicted upwards, the diagonal dotted."""
    numbers = [ms for network in judged for ms in network]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    grid = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for column in range(_COLUMNS):
        grid[round((_ROWS - 1) * column / (_COLUMNS - 1))][column] = "·"
    for network in judged:
        column = round((_COLUMNS - 1) * (network.measured_ms - low) / span)
        grid[round((_ROWS - 1) * (network.predicted_ms - low) / span)][column] = "●"
    labels = [f"{high:.4g}", *[""] * (_ROWS - 2), f"{low:.4g}"]
    width = max(map(len, labels))
    lines = [
        f"{label:>{width}} ┤{''.join(row)}"
        for label, row in zip(labels, reversed(grid), strict=True)
    ]
    axis = f"{'':>{width}} └{'─' * _COLUMNS}"
    foot = f"{'':>{width}}  {low:<{_COLUMNS // 2}.4g}{high:>{_COLUMNS // 2}.4g}  measured"
    return [f"{'predicted':>{width}}", *lines, axis, foot]


def _by_third(judged: Sequence[Judged]) -> list[tuple[object, ...]]:
    """Errors of the fast, the middle and the slow third; of all where they are few."""
    ordered = sorted(judged)
    groups = 3 if len(ordered) >= 3 * _FEWEST_IN_A_THIRD else 1
    cuts = [round(i * len(ordered) / groups) for i in range(groups + 1)]
    rows: list[tuple[object, ...]] = []
    for number, (start, stop) in enumerate(pairwise(cuts), 1):
        part = ordered[start:stop]
        errors = [network.predicted_ms / network.measured_ms - 1.0 for network in part]
        rows.append(
            (
                number if groups > 1 else "all",
                f"{part[0].predicted_ms:.4g}-{ms(part[-1].predicted_ms)}",
                len(part),
                f"{sum(map(abs, errors)) / len(errors):.2%}",
                f"{sum(errors) / len(errors):+.2%}",
            )
        )
    return rows


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"
