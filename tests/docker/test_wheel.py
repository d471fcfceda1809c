"""The wheel, as the images install it: complete, and writing nowhere but to its home."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder with the wheel's content alone."""
    built = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    subprocess.run([*command, str(built), str(ROOT)], check=True, timeout=300)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(built / "unpacked")
    return built / "unpacked"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_brings_the_migrations_and_the_page(unpacked):
    shipped = unpacked / "service" / "db" / "migrations" / "versions"
    in_tree = ROOT / "migrations" / "versions"
    assert {p.name for p in shipped.glob("*.py")} == {p.name for p in in_tree.glob("*.py")}
    page = ROOT / "service" / "measure_page" / "static"
    assert (unpacked / "service" / "measure_page" / "static" / "agent.js").read_bytes() == (
        page / "agent.js"
    ).read_bytes()


def test_the_api_starts_from_it_elsewhere_and_writes_only_to_its_home(unpacked, tmp_path):
    before = files(unpacked)
    environment = {
        **os.environ,
        "PYTHONPATH": str(unpacked),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TAILOR_HOME": str(tmp_path / "home"),
    }
    where = "import service.db.migrate as m; print(m.__file__)"
    imported = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(imported.stdout.strip()).is_relative_to(unpacked)
    api = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "api", "--port", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        told = {}
        while "TAILOR_READY" not in told:
            line = api.stdout.readline()
            assert line, "the API has ended"
            name, _, value = line.strip().partition("=")
            told[name] = value
        for path in ("/healthz", "/readyz"):
            assert httpx.get(told["TAILOR_URL"] + path, timeout=30).status_code == 200
    finally:
        api.send_signal(signal.SIGTERM)
        api.communicate(timeout=30)
    assert api.returncode in (0, -signal.SIGTERM)
    assert files(unpacked) == before
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
