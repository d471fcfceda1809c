"""What starts fast stays light: heavy libraries load where they are used."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "sklearn", "onnxscript"}
SERVER = {"sqlalchemy", "fastapi", "onnx", "alembic"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.app", HEAVY),
        ("service.cli.main", HEAVY),
        ("service.worker", HEAVY),
        ("service.client.client", HEAVY),
        ("search_core.effort", HEAVY | SERVER | {"numpy"}),
        ("predictor.agent.run", HEAVY | SERVER),
    ],
)
def test_importing_a_module_loads_nothing_heavy(module, forbidden):
    script = f"import {module}, sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = ran.stdout.split()
    assert module in loaded
    assert forbidden.intersection(loaded) == set()
