"""`tailor datasets`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_STATUS,
    Json,
    Key,
    Url,
    connect,
    print_json,
    print_table,
)
from service.client.client import Client
from service.client.errors import DatasetTimeoutError
from service.client.files import name_of
from service.datasets.schemas import DatasetDetail, DatasetRead

app = typer.Typer(help="What networks are trained on.", no_args_is_help=True)

_CLASSES = 20
_Resize = Annotated[
    int | None,
    typer.Option(help="Cut the images of a folder to their square, and resize them to this."),
]
_Wait = Annotated[bool, typer.Option(help="Wait until a worker has checked it.")]
_Timeout = Annotated[float, typer.Option(help="Seconds to wait.")]


@app.command("list")
def list_datasets(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List your data sets and the known ones."""
    with connect(url, api_key) as client:
        found = client.datasets()
    if json:
        return print_json(found)
    print_table(
        ["name", "status", "source", "images", "classes", "train", "test", "created"],
        [
            (d.name, d.status, d.source, _images(d), d.n_classes, d.n_train, d.n_test, d.created_at)
            for d in found
        ],
    )
    return None


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(help="Name, or id.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Show a data set, its classes and the spaces it can be searched on."""
    with connect(url, api_key) as client:
        _print(client.dataset(dataset), json=json)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=".npz, .zip, .tar.gz")],
    name: Annotated[str | None, typer.Option(help="The file's own unless given.")] = None,
    resolution_px: _Resize = None,
    wait: _Wait = True,
    timeout: _Timeout = 600.0,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Upload arrays, or an archive of folders of images."""
    columns = (
        TextColumn("uploading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with connect(url, api_key) as client:
        with Progress(*columns, disable=json) as progress:
            bar = progress.add_task("", total=file.stat().st_size)
            made = client.upload_dataset(
                file,
                name or name_of(file),
                resolution_px=resolution_px,
                on_progress=lambda sent: progress.update(bar, completed=sent),
            )
        _settled(client, made, wait=wait, timeout=timeout, json=json)


@app.command()
def register(
    name: str,
    builtin: Annotated[str | None, typer.Option(help="A known set: cifar10, ...")] = None,
    path: Annotated[str | None, typer.Option(help="A folder or .npz on the workers.")] = None,
    resolution_px: _Resize = None,
    wait: _Wait = True,
    timeout: _Timeout = 600.0,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Register a known set, or files that lie on the workers."""
    with connect(url, api_key) as client:
        made = client.register_dataset(
            name, builtin=builtin, path=path, resolution_px=resolution_px
        )
        _settled(client, made, wait=wait, timeout=timeout, json=json)


@app.command()
def delete(
    dataset: Annotated[str, typer.Argument(help="Name, or id.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Delete a data set that no unfinished search uses."""
    with connect(url, api_key) as client:
        client.delete_dataset(dataset)


def _settled(client: Client, made: DatasetRead, *, wait: bool, timeout: float, json: bool) -> None:
    """Print the data set, checked if that is waited for; a rejected one is a failure."""
    try:
        found = client.wait_for_dataset(made.id, timeout) if wait else client.dataset(made.id)
    except DatasetTimeoutError as error:
        raise typer.BadParameter(f"{error} `tailor datasets show {made.name}` asks again") from None
    _print(found, json=json)
    if found.status == "rejected":
        sys.exit(EXIT_STATUS["failed"])


def _print(found: DatasetDetail, *, json: bool) -> None:
    if json:
        return print_json(found)
    spaces = ", ".join(found.search_spaces) or None
    print_table(
        ["", ""],
        [
            ("id", found.id),
            ("name", found.name),
            ("status", found.status),
            *([("reason", found.reason)] if found.reason else []),
            ("source", f"{found.source} {found.place}"),
            ("images", _images(found)),
            ("train / test", f"{found.n_train} / {found.n_test}" if found.n_train else None),
            ("digest", found.digest),
            ("search spaces", spaces),
        ],
    )
    if found.classes:
        shown = [(c.name, c.n_train, c.n_test) for c in found.classes[:_CLASSES]]
        if len(found.classes) > _CLASSES:
            shown.append((f"and {len(found.classes) - _CLASSES} more", "", ""))  # type: ignore[arg-type]
        print_table(["class", "train", "test"], shown)
    return None


def _images(dataset: DatasetRead) -> str | None:
    if dataset.channels is None:
        return None
    return f"{dataset.channels} x {dataset.resolution_px} x {dataset.resolution_px}"
