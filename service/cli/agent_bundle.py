"""`tailor agent bundle`: a kit for a device without a network, and its results coming back."""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_USAGE,
    Json,
    Key,
    Url,
    connect,
    print_json,
    print_table,
)
from service.client.client import Client
from service.version import VERSION

if TYPE_CHECKING:
    from predictor.agent.connection import Connection

app = typer.Typer(help="Measure a device without a network.", no_args_is_help=True)
_stderr = Console(stderr=True)

_LEASE_LIMIT = 64
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same kit gives the same archive
_SOURCES = ("__init__.py", "errors.py", "measurements.py", "agent")
_RUN = '''\
"""Measure this kit on this device: python run.py --help."""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
    sys.path.insert(0, FOLDER)
    paths = [FOLDER, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for its child process
    try:
        import numpy  # noqa: F401
    except ImportError:
        sys.exit("numpy is missing: python -m pip install numpy onnxruntime")
    from pathlib import Path

    from predictor.agent.offline import main

    sys.exit(main(Path(FOLDER), {version!r}))
'''
_README = """\
Tailor kit: {search_space}, {precision}, batch {batch}, {n} files.

Needs on the device: Python 3.11 or newer, numpy, onnxruntime. With the package cryptography
the kit's signature is checked as well. No network is used.

    python run.py --doctor     what would spoil the numbers
    python run.py              measures; Ctrl-C stops it, the same command goes on
    python run.py --help       threads, runtime, a limit in minutes

Bring results.json back and give it to the service:

    tailor agent bundle import results.json
"""


# -- export ----------------------------------------------------------------------------


@app.command()
def export(
    space: Annotated[str, typer.Option(help="Search space to measure.")],
    precision: Annotated[str, typer.Option(help="float32 or int8")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Archive to write.")] = Path(
        "kit.zip"
    ),
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Write everything a device without a network needs into one archive."""
    from predictor.errors import NotAuthenticError

    try:
        with connect(url, api_key) as client:
            manifest, models = _download_kit(client, space, precision, batch, quiet=json)
    except NotAuthenticError as error:
        raise _failed(f"{url}: {error}") from error
    content = archive(manifest, models)
    partial = output.with_name(output.name + ".partial")
    partial.write_bytes(content)
    partial.replace(output)
    sha256 = hashlib.sha256(content).hexdigest()
    if json:
        print_json({"file": str(output), "sha256": sha256, "n_models": len(models)})
        return
    print_table(
        ["file", "models", "size", "sha256"],
        [(output, len(models), f"{len(content) / 2**20:.1f} MiB", sha256)],
    )
    _stderr.print("On the device: unpack it, then `python run.py`")


def _download_kit(
    client: Client, space: str, precision: str, batch: int, *, quiet: bool
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The signed manifest and its files by hash.

    Raises:
        NotAuthenticError: the manifest's signature or a file's hash does not match.
    """
    from predictor.agent.offline import check_manifest
    from predictor.errors import NotAuthenticError

    manifest = client.kit_manifest(space, precision, batch)
    try:
        check_manifest(manifest)
    except ImportError:
        _stderr.print("the signature is not checked: the package cryptography is not installed")
    needed = {manifest["anchor_sha256"], *(item["model_sha256"] for item in manifest["items"])}
    models: dict[str, bytes] = {}
    columns = (TextColumn("downloading"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=_stderr, disable=quiet, transient=True) as progress:
        for sha256 in progress.track(sorted(needed)):
            models[sha256] = client.kit_file(sha256)
            if hashlib.sha256(models[sha256]).hexdigest() != sha256:
                raise NotAuthenticError(f"file {sha256[:12]} arrived with another hash")
    return manifest, models


def archive(manifest: dict[str, Any], models: dict[str, bytes]) -> bytes:
    """The zip archive of a kit; the same bytes for the same kit and installation.

    The code in it is this installation's own, never the service's.

    Args:
        models: ONNX files by hash.
    """
    n = len(manifest["items"])
    entries = {
        "manifest.json": dumps(manifest, sort_keys=True, indent=1).encode(),
        "README.txt": _README.format(**{**manifest, "n": n}).encode(),
        "run.py": _RUN.format(version=VERSION).encode(),
        **{f"predictor/{name}": content for name, content in _own_sources()},
        **{f"models/{sha256}.onnx": content for sha256, content in models.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in sorted(entries.items()):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _own_sources() -> Iterator[tuple[str, bytes]]:
    """The agent's files as they are installed here, by their path inside `predictor`."""

    def below(place: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
        if place.is_file():
            yield path, place.read_bytes()
        elif place.name != "__pycache__":
            for inner in place.iterdir():
                yield from below(inner, f"{path}/{inner.name}")

    for name in _SOURCES:
        yield from below(files("predictor") / name, name)


# -- import ----------------------------------------------------------------------------


class RecordedResult(BaseModel):
    """One result of a device; whether it is sound is for the service to say."""

    subject: str
    model_sha256: str
    measurement: Any = None
    failure: Any = None


class Results(BaseModel):
    """The file that `run.py` writes."""

    format: Literal["tailor-results/1"]
    manifest_sha256: str
    search_space: str
    precision: str
    batch: int
    profile: dict[str, Any]
    agent_version: str
    finished_at: str
    items: list[RecordedResult]


class Verdict(BaseModel):
    """What became of one recorded result."""

    subject: str
    verdict: Literal["accepted", "refused", "already there"]
    reason: str | None = None


@app.command("import")
def import_results(
    path: Annotated[Path, typer.Argument(metavar="RESULTS", help="results.json of run.py")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Bring a device's results to the service; exit status 1 when some were refused."""
    from predictor.agent.connection import Connection, ServerRefusedError
    from predictor.agent.runtimes.base import RuntimeSpec
    from predictor.measurements import TargetProfile

    try:
        content = path.read_bytes()
        results = Results.model_validate_json(content)
        profile = TargetProfile(**results.profile)
    except OSError as error:
        raise _failed(f"{path} cannot be read: {error.strerror}") from error
    except (ValidationError, TypeError) as error:
        raise _failed(f"{path} is no file of results: {_brief(error)}") from error

    with connect(url, api_key) as client:
        code = client.create_enrolment_code(results.search_space).code
        newcomer = Connection(url, token=None)
        agent: Connection | None = None
        try:
            name = f"offline import of {path.name}"[:200]
            targets = [(RuntimeSpec(), profile)]
            identity = newcomer.enrol(code, name, targets, results.agent_version)
            agent = Connection(url, identity.token, signing_key=identity.signing_key)
            verdicts = _place(results, agent, hashlib.sha256(content).hexdigest()[:40])
        except (ServerRefusedError, httpx.HTTPError) as error:
            raise _failed(f"{url}: {error}") from error
        finally:
            newcomer.close()
            if agent is not None:
                agent.close()
        (target_id,) = identity.runtimes
        _explain_the_rest(client, results, target_id, verdicts)
    told = [verdicts[index] for index in range(len(results.items))]
    _report(told, identity.agent_id, target_id, json=json)
    if any(verdict.verdict == "refused" for verdict in told):
        raise typer.Exit(1)


def _place(results: Results, agent: "Connection", batch_prefix: str) -> dict[int, Verdict]:
    """Answer every open task that the file has a result for; verdicts by index in the file.

    Raises:
        ServerRefusedError: the service does not take a whole batch.
        httpx.HTTPError: it is out of reach; importing again goes on.
    """
    from predictor.agent.journal import JournalEntry

    waiting: dict[str, list[int]] = {}
    for index, result in enumerate(results.items):
        waiting.setdefault(result.subject, []).append(index)
    verdicts: dict[int, Verdict] = {}
    n_batches = 0
    # what this file has no answer for stays leased until the lease runs out, so this ends
    while tasks := agent.lease(_LEASE_LIMIT, 0.0).tasks:
        uploaded: list[int] = []
        items: list[dict[str, Any]] = []
        for task in tasks:
            if task.effort != "table" or task.subject not in waiting:
                continue  # a certificate asks for more care than was taken
            index, *others = sorted(
                waiting.pop(task.subject),
                key=lambda i: results.items[i].model_sha256 != task.model_sha256,
            )
            for other in others:
                verdicts[other] = _refused(task.subject, "the file has another result for it")
            uploaded.append(index)
            # a wrong hash goes up as well: the service says what it thinks of it
            answer = results.items[index].model_dump(exclude={"subject"}, exclude_none=True)
            items.append({"task_id": task.id, "fence": task.fence, **answer})
        if not items:
            continue
        report = agent.upload(JournalEntry(f"{batch_prefix}-{n_batches}", items))
        n_batches += 1
        for index, item in zip(uploaded, report["items"], strict=True):
            subject = results.items[index].subject
            verdicts[index] = (
                Verdict(subject=subject, verdict="accepted")
                if item["accepted"]
                else _refused(subject, item["reason"])
            )
    return verdicts


def _explain_the_rest(
    client: Client, results: Results, target_id: str, verdicts: dict[int, Verdict]
) -> None:
    """Add the verdicts on results that no open task asked for."""
    rest = [index for index in range(len(results.items)) if index not in verdicts]
    if not rest:
        return
    stored = {(m.subject, m.model_sha256) for m in client.measurements(target_id)}
    known: set[str] | None = None
    for index in rest:
        result = results.items[index]
        if (result.subject, result.model_sha256) in stored:
            verdicts[index] = Verdict(subject=result.subject, verdict="already there")
            continue
        if known is None:
            kit = client.kit_manifest(results.search_space, results.precision, results.batch)
            known = {item["subject"] for item in kit["items"]}
        verdicts[index] = _refused(
            result.subject,
            "no open task asks for it: it has ended, or another agent holds it just now"
            if result.subject in known
            else f"the kit of {results.search_space} has no such subject",
        )


def _refused(subject: str, reason: str | None) -> Verdict:
    return Verdict(subject=subject, verdict="refused", reason=reason or "no reason was given")


def _report(verdicts: list[Verdict], agent_id: str, target_id: str, *, json: bool) -> None:
    counts = Counter(verdict.verdict for verdict in verdicts)
    summary = {
        "agent": agent_id,
        "target": target_id,
        "accepted": counts["accepted"],
        "refused": counts["refused"],
        "already_there": counts["already there"],
    }
    if json:
        print_json({**summary, "items": [verdict.model_dump() for verdict in verdicts]})
        return
    print_table(
        ["subject", "verdict", "reason"],
        [(escape(v.subject), v.verdict, v.reason and escape(v.reason)) for v in verdicts],
    )
    print_table(list(summary), [list(summary.values())])
    if not counts["accepted"]:
        _stderr.print("Nothing was added.")


def _failed(text: str) -> typer.Exit:
    _stderr.print(f"[red]error[/red] {escape(text)}", soft_wrap=True, highlight=False)
    return typer.Exit(EXIT_USAGE)


def _brief(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "document"
    return f"{place}: {first['msg']}"
