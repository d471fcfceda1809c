"""A new device, from the enrolment code to a usable target, unattended.

The device is this machine: with ``--device cpu`` an agent in a virtual environment of its own,
freshly made, with nothing in it but what `pip install tailor-nas[agent]` brings (no torch);
with ``--device browser`` the page that the enrolment code opens, in headless Chromium. Both
speak HTTP to an API and a worker with an empty store. The time counts from the code to the
latency model, the installation of the agent included.

    python -m benchmarks.new_device --json
    python -m benchmarks.new_device --device browser --json

The last line is JSON. `block_sum_bias`, `mape`, `within_10` are told by whole networks that no
part of the latency model has seen.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.installations import Installation, installation
from service.client.client import Client
from service.latency_models.schemas import LatencyModelRead

REACH = {"minutes": 10.0, "block_sum_bias": 0.03, "mape": 0.05, "within_10": 0.95}
_ROOT = Path(__file__).resolve().parents[1]
_LIMIT_SECONDS = 1800.0
_POLL_SECONDS = 1.0


def main() -> int:
    """Measure the device and print the record; 0 when every number was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "browser"), default="cpu")
    parser.add_argument("--space", default="proxyless_cifar_mb")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--here", action="store_true", help="no virtual environment of its own")
    parser.add_argument("--json", action="store_true", help="only the record")
    parser.add_argument("--out", type=Path, help="also write the record here")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        if not arguments.json:
            print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="tailor-new-device-") as folder:
        home = Path(folder)
        with installation(home / "service") as service, Client(service.url, service.key) as client:
            began = time.monotonic()
            code = client.create_enrolment_code(arguments.space)
            facts: dict[str, Any] = {}
            if arguments.device == "cpu":
                facts |= _cpu_agent(home, service, code.code, arguments, say)
            else:
                facts |= _browser(home, service, code.measure_path, say)
            model = _await_model(client, arguments.space)
            seconds = time.monotonic() - began
            record = _record(client, model, seconds, facts, arguments)
    line = json.dumps(record)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(line)
    return 0 if record["reached"] else 1


def _cpu_agent(
    home: Path, service: Installation, code: str, arguments: argparse.Namespace, say: Any
) -> dict[str, Any]:
    """Install the agent as on a new machine and let it run until all is measured."""
    facts: dict[str, Any] = {"clean_environment": not arguments.here}
    tailor = Path(sys.executable).with_name("tailor")
    if not arguments.here:
        began = time.monotonic()
        say("installing the agent into an environment of its own")
        environment = home / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--no-cache-dir"]
        constraints = ["-c", str(_ROOT / "constraints.txt")]
        subprocess.run([*pip, *constraints, f"{_ROOT}[agent]"], check=True, stdout=sys.stderr)
        facts["install_seconds"] = round(time.monotonic() - began, 1)
        facts["environment_mb"] = round(_size(environment) / 1e6)
        python = str(environment / "bin" / "python")
        no_torch = "import importlib.util as u; print(u.find_spec('torch') is None)"
        told = subprocess.run([python, "-c", no_torch], check=True, capture_output=True, text=True)
        facts["without_torch"] = told.stdout.strip() == "True"
        tailor = environment / "bin" / "tailor"
    say("measuring")
    subprocess.run(
        [
            *(str(tailor), "agent", "run", "--code", code, "--url", service.url),
            *("--precision", arguments.precision, "--until-measured"),
            *("--state", str(home / "agent")),
        ],
        check=True,
        cwd=home,  # not in the source tree: what is installed is what runs
        env={
            key: value
            for key, value in os.environ.items()
            if key not in ("PYTHONPATH", "VIRTUAL_ENV")
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if arguments.json else None,
        timeout=_LIMIT_SECONDS,
    )
    return facts


def _browser(home: Path, service: Installation, path: str, say: Any) -> dict[str, Any]:
    """Open the page in headless Chromium, press Start, and wait until it is done."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("TAILOR_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    arguments = [
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page()
        page.goto(service.url + path)
        page.get_by_role("button", name="Start").click()
        say(f"measuring in {browser.version}")
        deadline = time.monotonic() + _LIMIT_SECONDS
        while (state := page.evaluate("document.body.dataset.state")) != "done":
            if state == "error" or time.monotonic() > deadline:
                raise SystemExit(f"the page ended in state {state}: {page.inner_text('body')}")
            page.wait_for_timeout(1000 * _POLL_SECONDS)
        page.screenshot(path=str(home / "page.png"), full_page=True)
        with suppress(OSError):
            shutil.copy(home / "page.png", Path(tempfile.gettempdir()) / "tailor-page.png")
        version = browser.version
        browser.close()
    return {"browser": f"Chromium {version}, headless"}


def _await_model(client: Client, space: str) -> LatencyModelRead:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        for target in client.targets():
            if (model := client.active_latency_model(target.id, space)) is not None:
                return model
        time.sleep(_POLL_SECONDS)
    raise SystemExit("no latency model came")


def _record(
    client: Client,
    model: LatencyModelRead,
    seconds: float,
    facts: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    kit = client.create_kit(model.target, arguments.space)
    report = model.report
    held_out = report["held_out"]
    record: dict[str, Any] = {
        "benchmark": "new_device",
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.new_device {' '.join(sys.argv[1:])}".strip(),
        "device": arguments.device,
        "space": arguments.space,
        "profile": client.target(model.target).profile,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        **facts,
        "minutes": round(seconds / 60, 2),
        "blocks": report["n_blocks"],
        "files_measured": kit.completed,
        "share_flagged": kit.flagged / kit.completed,
        "grades": report["measurements"]["grades"],
        "mean_contended_share": report["measurements"]["mean_contended_share"],
        "n_held_out": held_out["n"],
        "block_sum_bias": report["block_sum_bias"],
        "block_sum": report["block_sum"],
        "mape": held_out["mape"],
        "bias": held_out["bias"],
        "within_10": held_out["within_10"],
        "spearman": held_out["spearman"],
        "fastest_ms": model.fastest_ms,
        "slowest_ms": model.slowest_ms,
        "to_reach": REACH,
    }
    record["reached"] = (
        record["minutes"] <= REACH["minutes"]
        and abs(record["block_sum_bias"]) <= REACH["block_sum_bias"]
        and record["mape"] <= REACH["mape"]
        and record["within_10"] >= REACH["within_10"]
    )
    return record


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
