"""What a host tells about itself."""

import json
import os

import pytest

from predictor.agent import host


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """Writes files under what the kernel calls ``/sys/devices/system/cpu``."""
    monkeypatch.setattr(host, "_CPU", tmp_path)

    def write(**files):
        for name, content in files.items():
            path = tmp_path / "cpu0" / "cpufreq" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return write


def test_a_host_always_has_a_device_model_and_a_system():
    assert host.device_model().strip() == host.device_model() != ""
    assert len(host.system().split()) >= 2


def test_transient_facts_can_be_uploaded_as_json():
    facts = host.transient_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu_count"] == os.cpu_count()
    assert len(facts) < 30  # an upload holds 32


def test_clocks_and_throttling_are_told_where_the_system_tells_them(cpus, tmp_path):
    cpus(scaling_governor="powersave", scaling_cur_freq=1_800_000)
    counter = tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count"
    counter.parent.mkdir()
    counter.write_text("3\n")
    facts = host.transient_facts()
    assert facts["governor"] == "powersave"
    assert facts["clock_mhz"] == 1800
    assert facts["throttled"] == 3


def test_a_host_that_does_not_tell_its_clocks_says_so(cpus):
    assert host.clock_state() == "unmanaged"
    assert "governor" not in host.transient_facts()


def test_the_governor_rules_the_clock(cpus):
    cpus(scaling_governor="schedutil", scaling_min_freq=600_000, scaling_max_freq=1_800_000)
    assert host.clock_state() == "governor schedutil"


def test_a_clock_that_cannot_move_is_told_with_its_speed(cpus):
    cpus(scaling_governor="userspace", scaling_min_freq=1_500_000, scaling_max_freq=1_500_000)
    assert host.clock_state() == "governor userspace, fixed at 1500 MHz"


def test_files_that_hold_something_else_are_not_believed(cpus):
    cpus(scaling_governor="performance", scaling_min_freq="<unknown>", scaling_cur_freq="?")
    assert host.clock_state() == "governor performance"
    assert "clock_mhz" not in host.transient_facts()


@pytest.fixture
def affinity():
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def test_pinning_keeps_as_many_cores_as_there_are_threads(affinity):
    told = host.pin(1)
    if len(affinity) == 1:
        assert told == ""
    else:
        assert os.sched_getaffinity(0) == {int(told)} < affinity


def test_where_every_core_is_needed_nothing_is_pinned(affinity):
    assert host.pin(len(affinity)) == ""
    assert os.sched_getaffinity(0) == affinity


def test_unlike_cores_are_chosen_by_their_speed(affinity, tmp_path, monkeypatch):
    if len(affinity) == 1:
        pytest.skip("needs two cores")
    monkeypatch.setattr(host, "_CPU", tmp_path)
    fast = max(affinity)
    for core in affinity:
        path = tmp_path / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq"
        path.parent.mkdir(parents=True)
        path.write_text("2400000" if core == fast else "1800000")
    assert host.pin(1) == str(fast)


def test_a_refused_pin_is_no_failure(affinity, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert host.pin(1) == ""
