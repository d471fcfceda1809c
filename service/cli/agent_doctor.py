"""`tailor agent doctor`: what would spoil the numbers, told before anything is measured."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from service.cli.connection import DEFAULT_URL, Json, Url, print_json, print_table
from service.settings import Settings

_stderr = Console(stderr=True)
_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


def doctor(
    url: Url = DEFAULT_URL,
    offline: Annotated[bool, typer.Option(help="Leave the API out.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of the identity and journal; default TAILOR_HOME/agent."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="Runtime to measure with, as at enrolment.")
    ] = "onnxruntime-cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600.0, help="How long the anchor model runs.")
    ] = 3.0,
    json: Json = False,
) -> None:
    """Say what would spoil measurements here; exit status 0 when nothing is bad."""
    from predictor.agent.doctor import examine
    from predictor.agent.runtimes.base import RuntimeSpec

    findings = examine(
        RuntimeSpec(runtime, threads),
        None if offline else url,
        state or Settings().home / "agent",
        seconds,
    )
    n_bad = sum(finding.level == "bad" for finding in findings)
    if json:
        document = {"ready": n_bad == 0, "findings": [asdict(finding) for finding in findings]}
        print_json(document)
    else:
        print_table(
            ["", "check", "found", "advice"],
            [
                (f"[{_COLOURS[f.level]}]{f.level}[/]", f.check, escape(f.found), escape(f.advice))
                for f in findings
            ],
        )
        n_warn = sum(finding.level == "warn" for finding in findings)
        _stderr.print(f"{n_bad} bad, {n_warn} to think about, of {len(findings)} checks")
    if n_bad:
        raise typer.Exit(1)
