"""The best times of anchors: a neighbour who stays is not taken for the device."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from predictor.agent.sandbox import AnchorMemory

SHA256 = "a" * 64
QUIET = [1.0] * 600
BUSY = [1.5] * 2000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "anchors.json"


def waited(memory, seconds=AnchorMemory._PATIENCE_SECONDS + 1):
    memory._near_at[SHA256] -= seconds


def test_a_best_time_is_held_although_the_latest_readings_are_all_slow(path):
    memory = AnchorMemory(path)
    memory.learn(SHA256, QUIET)
    memory.learn(SHA256, BUSY)
    assert memory.of(SHA256) == 1.0
    assert memory.doubt(SHA256) == ""


def test_it_outlives_the_process(path):
    AnchorMemory(path).learn(SHA256, QUIET)
    assert AnchorMemory(path).of(SHA256) == 1.0
    assert AnchorMemory(None).of(SHA256) is None


def test_after_a_day_it_is_forgotten(path):
    long_ago = (datetime.now(UTC) - timedelta(days=1, minutes=1)).isoformat()
    path.write_text(json.dumps({SHA256: [1.0, long_ago]}))
    assert AnchorMemory(path).of(SHA256) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', '{"a": [1.0, "soon"]}'])
def test_a_damaged_file_is_no_memory(path, content):
    path.write_text(content)
    memory = AnchorMemory(path)
    assert memory.of("a") is None
    memory.learn(SHA256, QUIET)
    assert AnchorMemory(path).of(SHA256) == 1.0


def test_few_readings_make_no_best_time(path):
    memory = AnchorMemory(path)
    memory.learn(SHA256, QUIET[:499])
    assert memory.of(SHA256) is None


def test_a_device_that_has_been_slow_for_minutes_is_measured_as_it_is_and_doubted(path):
    memory = AnchorMemory(path)
    memory.learn(SHA256, QUIET)
    waited(memory)
    memory.learn(SHA256, BUSY)
    assert memory.of(SHA256) is None
    assert "slower than its best (1 ms" in memory.doubt(SHA256)


def test_the_doubt_ends_when_the_best_is_reached_again(path):
    memory = AnchorMemory(path)
    memory.learn(SHA256, QUIET)
    waited(memory)
    memory.learn(SHA256, [1.04] * 2000)
    assert memory.doubt(SHA256) == ""
    assert memory.of(SHA256) == 1.0


def test_a_faster_best_replaces_the_slower_one(path):
    memory = AnchorMemory(path)
    memory.learn(SHA256, QUIET)
    memory.learn(SHA256, [0.9] * 600)
    assert memory.of(SHA256) == 0.9
    assert AnchorMemory(path).of(SHA256) == 0.9


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    memory = AnchorMemory(tmp_path / "missing" / "anchors.json")
    memory.learn(SHA256, QUIET)
    assert memory.of(SHA256) == 1.0
