"""Pricing any ONNX file: taken in piece by piece, read in a process of its own, under limits."""

import hashlib
import platform
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from service.confined import ConfinedError, run_confined
from service.errors import (
    ConflictError,
    InvalidRequestError,
    NoLatencyModelError,
    PayloadTooLargeError,
)
from service.jobs import repository as jobs
from service.latency_models.repository import active_models
from service.predictions.repository import find_prices
from service.predictions.schemas import FilePredictionRead, KernelRead
from service.settings import Settings
from service.targets.models import Target
from service.targets.repository import get_target

PRICES_JOB = "fit_kernel_prices"

READERS = 2
"""How many files are read at once; each may take a core and gigabytes."""

_PATIENCE = timedelta(seconds=10)
_SECONDS = 90.0
_CHILD = "service.predictions.child"


class Prices(NamedTuple):
    """What a file is priced with."""

    document: dict[str, Any]
    target: Target
    warnings: list[str]


def ask_for_prices(session: Session, target_id: str, settings: Settings) -> None:
    """Queue the fit of what kernels cost on a target, where they can be read.

    Searches go first, also one that is asked for as soon as the latency model is there: reading
    the kernels of a kit's files takes a while.
    """
    latest = jobs.of_subject(session, target_id)
    is_queued = latest is not None and latest.status == "queued"
    if has_known_kernels(get_target(session, target_id)) and not is_queued:
        job = jobs.enqueue(
            session, PRICES_JOB, target_id, max_attempts=settings.max_attempts, priority=-10
        )
        job.available_at += _PATIENCE


def has_known_kernels(target: Target) -> bool:
    """Whether the kernels that a target runs can be read off a file here."""
    profile = target.profile
    return (profile["runtime"], profile["execution_provider"]) == (
        "onnxruntime",
        "CPUExecutionProvider",
    )


def prices_of(session: Session, target_id: str) -> Prices:
    """What kernels cost on a target.

    Raises:
        NotFoundError: there is no such target.
        NoLatencyModelError: it is not known what they cost; saying what to do.
    """
    target = get_target(session, target_id)
    if not has_known_kernels(target):
        raise NoLatencyModelError(
            "files are priced for onnxruntime's CPUExecutionProvider only, whose kernels can be "
            f"read; target {target.id} runs {target.profile['runtime']} "
            f"{target.profile['execution_provider']}"
        )
    row = find_prices(session, target.id)
    if row is None:
        raise NoLatencyModelError(_why_not(session, target))
    stale = {row.stale["text"] for row, _ in active_models(session, target.id) if row.stale}
    return Prices(row.document, target, [f"the prices are stale: {text}" for text in sorted(stale)])


def _why_not(session: Session, target: Target) -> str:
    fit = jobs.of_subject(session, target.id)
    if fit is not None and fit.status in ("queued", "running"):
        return (
            f"what kernels cost on target {target.id} is being found out just now; ask again in "
            "a minute, and see that a worker runs"
        )
    if fit is not None and fit.status == "failed":
        return f"what kernels cost on target {target.id} could not be found out: {fit.failure}"
    return (
        f"nothing was measured on target {target.id} to price kernels by; measure a space: "
        f"`tailor measure {target.id} --space micro`, or POST /v1/kits"
    )


async def receive(stream: AsyncIterator[bytes], path: Path, max_bytes: int) -> str:
    """Write a body to `path` as it arrives, and return its hexadecimal sha256.

    Raises:
        PayloadTooLargeError: it is longer; no more than that was taken in.
        InvalidRequestError: there is none.
    """
    digest, n_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        async for piece in stream:
            n_bytes += len(piece)
            if n_bytes > max_bytes:
                raise PayloadTooLargeError(f"the file is larger than {max_bytes} bytes")
            digest.update(piece)
            file.write(piece)
    if n_bytes == 0:
        raise InvalidRequestError("send an ONNX file as the body", field="file")
    return digest.hexdigest()


def price_file(path: Path, sha256: str, prices: Prices) -> FilePredictionRead:
    """The predicted latency of the ONNX file at `path`.

    Raises:
        InvalidRequestError: it cannot be read, or not within the limits.
        ConflictError: the prices are of another version of the runtime.
    """
    answer = _read(path, prices.document)
    if "bad_file" in answer:
        raise InvalidRequestError(answer["bad_file"], field="file")
    if "bad_prices" in answer:
        again = f"`tailor measure {prices.target.id} --again` renews them"
        raise ConflictError(f"{answer['bad_prices']}; {again}")
    found = answer["prediction"]
    total_ms = found["latency_ms"]
    return FilePredictionRead(
        target=prices.target.id,
        sha256=sha256,
        predicted_ms=total_ms,
        low_ms=found["low_ms"],
        high_ms=found["high_ms"],
        level=answer["level"],
        call_ms=found["call_ms"],
        kernels=[
            KernelRead(
                name=kernel["name"],
                op=kernel["operator"],
                ms=kernel["latency_ms"],
                share=kernel["latency_ms"] / total_ms,
                covered=kernel["standing"] == "fitted",
            )
            for kernel in found["kernels"]
        ],
        unknown_operators=found["unknown"],
        coverage=found["coverage"],
        runtime=answer["runtime"],
        warnings=[*prices.warnings, *_warnings(found, answer["runtime"], prices.target)],
    )


def _warnings(found: dict[str, Any], runtime: str, target: Target) -> list[str]:
    told = []
    if found["unknown"]:
        told.append(f"never measured, so priced by size alone: {', '.join(found['unknown'])}")
    if found["coverage"] < 1.0:
        told.append(
            f"{1 - found['coverage']:.0%} of the latency is in kernels unlike measured ones"
        )
    profile = target.profile
    runs = f"{profile['runtime']} {profile['runtime_version']}", profile["machine"]
    here = runtime, platform.machine()
    if runs != here:
        told.append(
            f"the kernels are those of {' on '.join(here)}; the target runs {' on '.join(runs)}"
        )
    return told


def _read(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """What the child says of the file."""
    request = {"path": str(path), "prices": document}
    try:
        answer = run_confined(_CHILD, request, path.parent, seconds=_SECONDS)
    except ConfinedError as error:
        raise InvalidRequestError(f"the file cannot be read: {error}", field="file") from None
    assert answer is not None  # nobody stops it
    return answer
