"""What the guarantee's benchmark says of measurements, and that it goes on where it stopped."""

from types import SimpleNamespace

import pytest

from benchmarks.guarantee import interval
from benchmarks.installations import installation
from benchmarks.records import plot_intervals
from service.client.client import Client

BUDGET_MS = 1.0


def measured(*medians_ms: float, sigma_ms: float = 1e-4) -> list[SimpleNamespace]:
    return [SimpleNamespace(latency_ms=ms, sigma_ms=sigma_ms) for ms in medians_ms]


def test_a_file_that_is_slower_in_every_round_is_above_its_budget():
    found = interval(measured(1.02, 1.021, 1.022), BUDGET_MS)
    assert found["again_low_ms"] > BUDGET_MS
    assert found["above_budget"] is True
    assert found["slack"] == pytest.approx(-0.021)


def test_rounds_that_disagree_leave_it_open_whatever_each_says_of_itself():
    found = interval(measured(0.97, 1.00, 1.05), BUDGET_MS)
    assert found["again_low_ms"] < BUDGET_MS < found["again_high_ms"]
    assert found["above_budget"] is False


def test_rounds_that_agree_by_chance_are_no_surer_than_each_of_them():
    narrow = interval(measured(1.01, 1.01, 1.01, sigma_ms=0.001), BUDGET_MS)
    wide = interval(measured(1.01, 1.01, 1.01, sigma_ms=0.02), BUDGET_MS)
    assert narrow["above_budget"] is True
    assert wide["above_budget"] is False
    # Student's t of 2 degrees of freedom, times the standard error of three
    assert wide["half_width"] * 1.01 == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)


def test_intervals_are_drawn_a_panel_each(tmp_path):
    path = tmp_path / "intervals.svg"
    panels = {"cpu": [(0.9, 0.95, 1.0), (0.91, 0.93, 0.97)], "wasm": [(0.8, 0.9, 1.1)]}
    plot_intervals(panels, path, "a title", "a unit", at=1.0)
    drawn = path.read_text()
    assert "a title" in drawn
    assert drawn.count("<!-- cpu -->") == drawn.count("<!-- wasm -->") == 1


@pytest.mark.slow
def test_an_installation_goes_on_where_it_stopped(tmp_path):
    home = tmp_path / "home"
    with installation(home) as first, Client(first.url, first.key) as client:
        made = client.create_key("kept", "user")
    with installation(home) as second, Client(second.url, second.key) as client:
        assert (second.url, second.key) == (first.url, first.key)
        kept = list(client.keys())
    assert made.id in [key.id for key in kept]
