"""`tailor predict`: what a network or an ONNX file would take on a target, without measuring it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_USAGE,
    Json,
    Key,
    Url,
    connect,
    ms,
    print_json,
    print_table,
)
from service.client.client import Client
from service.predictions.schemas import (
    FilePredictionRead,
    PredictionList,
    PredictionRead,
    SlotExchangesRead,
    SlotShareRead,
    WhatIfRead,
)

_stdout, _stderr = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True)
_BAR_CHARACTERS = 24
_EVERY_SLOT = "all"


def predict(
    network: Annotated[
        str, typer.Argument(metavar="ARCH|FILE.onnx", help="Compact string, or any ONNX file.")
    ],
    target: Annotated[str, typer.Option(help="Id of the target, tgt_...")],
    space: Annotated[str, typer.Option(help="Search space of the compact string.")] = "micro",
    budget_ms: Annotated[
        float | None, typer.Option(help="Say whether it should stay within this.")
    ] = None,
    slot: Annotated[
        str | None,
        typer.Option(
            "--what-if",
            metavar="SLOT",
            help=f"Every candidate of this slot, by name or index; `{_EVERY_SLOT}`: of each.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Predict the latency of a network, layer by layer, or of an ONNX file, kernel by kernel."""
    found: PredictionList | WhatIfRead | FilePredictionRead
    with connect(url, api_key) as client:
        if network.endswith(".onnx"):
            if slot is not None or budget_ms is not None:
                raise _failed("--what-if and --budget-ms are for architectures, not for files")
            found = client.predict_file(target, _content(network))
        else:
            found = client.predict(target, space, [network], target_ms=budget_ms)
            if slot is not None:
                found = _exchanges(client, found, network, slot)
    if json:
        print_json(found)
    elif isinstance(found, FilePredictionRead):
        _print_file(found)
    elif isinstance(found, WhatIfRead):
        _print_exchanges(found)
    else:
        _print_network(found)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _failed(f"{path} cannot be read: {error.strerror}") from error


def _exchanges(client: Client, found: PredictionList, network: str, slot: str) -> WhatIfRead:
    named = None if slot == _EVERY_SLOT else int(slot) if slot.isdecimal() else slot
    return client.what_if(found.latency_model, network, named)


# -- a network, layer by layer ---------------------------------------------------------


def _print_network(found: PredictionList) -> None:
    (item,) = found.items
    _stdout.print(escape(item.architecture), style="bold")
    _stdout.print(f"{_headline(item)}, by {found.latency_model} (version {found.version})")
    if item.within_target is not None:
        _stdout.print("within the budget" if item.within_target else "over the budget, most likely")
    whole_ms, parts = item.predicted_ms, item.waterfall
    rows = [
        (
            "call" + (", fixed layers" if parts.fixed else ""),
            ", ".join(layer.block for layer in parts.fixed),
            *_priced(parts.call_ms, whole_ms),
            "",
        )
    ]
    rows += [
        (
            escape(share.name),
            escape(", ".join(dict.fromkeys(layer.block for layer in share.layers))),
            *_priced(share.ms if share.supported else None, whole_ms),
            _note(share),
        )
        for share in parts.slots
    ]
    if parts.interactions_ms:
        rows.append(("between slots", "", *_priced(parts.interactions_ms, whole_ms), ""))
    print_table(["part", "block", "ms", "share", "", ""], rows)
    _warn([*found.warnings, *item.warnings])
    _stderr.print("What an exchange would change: add --what-if SLOT, or --what-if all")


def _headline(item: PredictionRead) -> str:
    if item.predicted_ms is None:
        return "the target cannot run it"
    told = f"{item.predicted_ms:.4g} ms predicted"
    if item.low_ms is not None and item.level is not None:
        told += f"; {item.level:.0%} of measurements lie in {item.low_ms:.4g}-{ms(item.high_ms)}"
    return f"{told}; one should stay below {ms(item.upper_ms)}"


def _note(share: SlotShareRead) -> str:
    if not share.supported:
        return "cannot run"
    if not share.in_range:
        return "extrapolated"
    return "" if share.measured else "predicted"


# -- what an exchange would change -----------------------------------------------------


def _print_exchanges(found: WhatIfRead) -> None:
    _stdout.print(escape(found.architecture), style="bold")
    _stdout.print(f"{ms(found.predicted_ms)} predicted as it is")
    rows = [row for slot in found.slots for row in _exchange_rows(slot)]
    print_table(["slot", "instead", "predicted", "change", ""], rows)
    _warn(found.warnings)


def _exchange_rows(slot: SlotExchangesRead) -> Iterable[tuple[object, ...]]:
    for other in slot.candidates:
        notes = [
            *(["as it is"] if other.chosen else []),
            *([] if other.supported else ["cannot run"]),
            *([] if other.measured else ["predicted"]),
        ]
        delta = None if other.delta_ms is None else f"{other.delta_ms:+.4g} ms"
        told = ms(other.predicted_ms)
        yield escape(slot.name), escape(other.candidate), told, delta, ", ".join(notes)


# -- a file, kernel by kernel ----------------------------------------------------------


def _print_file(found: FilePredictionRead) -> None:
    _stdout.print(
        f"{found.predicted_ms:.4g} ms predicted; {found.level:.0%} of measurements lie in "
        f"{found.low_ms:.4g}-{ms(found.high_ms)}; {found.coverage:.0%} of it in kernels like "
        "measured ones"
    )
    rows: list[tuple[object, ...]] = [
        ("call", "", *_priced(found.call_ms, found.predicted_ms), ""),
    ]
    rows += [
        (
            escape(kernel.op),
            escape(kernel.name),
            *_priced(kernel.ms, found.predicted_ms),
            "" if kernel.covered else "not covered",
        )
        for kernel in found.kernels
    ]
    print_table(["kernel", "node", "ms", "share", "", ""], rows)
    _warn(found.warnings)


# -- parts -----------------------------------------------------------------------------


def _priced(part_ms: float | None, whole_ms: float | None) -> tuple[str | None, str | None, str]:
    """A latency, its share of the whole, and that as a bar."""
    if part_ms is None:
        return None, None, ""
    if not whole_ms:
        return f"{part_ms:.4g}", None, ""
    share = part_ms / whole_ms
    bar = "█" * round(_BAR_CHARACTERS * min(1.0, max(0.0, share)))
    return f"{part_ms:.4g}", f"{share:.1%}", bar


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        _stderr.print(f"[yellow]warning[/yellow] {escape(text)}", highlight=False)


def _failed(text: str) -> typer.Exit:
    _stderr.print(f"[red]error[/red] {escape(text)}", highlight=False)
    return typer.Exit(EXIT_USAGE)
