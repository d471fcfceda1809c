"""What a worker finds on its machine, and what it gives of it to attempts."""

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.launchers.subprocess import environment_of
from service.jobs.needs import MEMORY_STEP_BYTES, Allotment, Needs, Offer, needs
from service.workers import resources as found
from service.workers.resources import Gpu, Resources, ResourcesError, find_resources

GIB = 2**30


def machine(slots: int = 2, gpus: int = 0, memory_bytes: int = 8 * GIB) -> Resources:
    found = tuple(Gpu(f"GPU-{n}", "a GPU", 80 * GIB) for n in range(gpus))
    return Resources(slots, 4, memory_bytes, found, {"host": "here", "gpu_model": "a GPU"})


# -- needs -----------------------------------------------------------------------------

LABELS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)


@given(st.integers(0, 8), st.booleans(), st.integers(0, 2**40), LABELS)
def test_needs_are_what_was_written(gpus, uses_gpu, memory_bytes, labels):
    made = needs(gpus=gpus, uses_gpu=uses_gpu, memory_bytes=memory_bytes, labels=labels)
    assert Needs.parse(made.format()) == made
    assert memory_bytes <= made.memory_bytes < memory_bytes + MEMORY_STEP_BYTES


def test_equal_needs_are_equal_texts():
    one = needs(memory_bytes=5, labels={"b": "1", "a": "2"})
    other = needs(memory_bytes=6, labels={"a": "2", "b": "1"})
    assert one.format() == other.format()
    assert needs().format() == "{}"


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"gpus": 1, "memory_bytes": GIB}, True),
        ({"gpus": 2}, False),
        ({"uses_gpu": True}, True),
        ({"memory_bytes": GIB + 1}, False),
        ({"labels": {"gpu_model": "nvidia a100"}}, True),
        ({"labels": {"gpu_model": "*A100*"}}, True),
        ({"labels": {"gpu_model": "A100"}}, False),
        ({"labels": {"room": "*"}}, False),
    ],
)
def test_what_fits_lacks_nothing(asked, fits):
    offer = Offer(gpus=1, memory_bytes=GIB, labels={"gpu_model": "NVIDIA A100"})
    assert needs(**asked).fits(offer) is fits
    assert bool(needs(**asked).lacking(offer)) is not fits


# -- sharing a machine -----------------------------------------------------------------


def test_attempts_share_evenly():
    first = machine().allot(needs(), [])
    second = machine().allot(needs(), [first])
    assert first == second == Allotment((), 2, 4 * GIB)
    assert machine().allot(needs(), [first, second]) is None


def test_one_attempt_at_a_time_has_every_core():
    assert machine(slots=1).allot(needs(), []) == Allotment((), 0, 8 * GIB)


def test_an_attempt_that_needs_more_memory_gets_it_and_the_next_what_is_left():
    first = machine().allot(needs(memory_bytes=7 * GIB), [])
    assert first.memory_bytes == 7 * GIB
    assert machine().allot(needs(), [first]).memory_bytes == GIB
    assert machine().allot(needs(memory_bytes=2 * GIB), [first]) is None
    nearly_all = machine().allot(needs(memory_bytes=8 * GIB - MEMORY_STEP_BYTES), [])
    assert machine().allot(needs(), [nearly_all]) is None


def test_each_attempt_has_a_gpu_of_its_own_and_waits_for_one_where_there_are_some():
    on_gpu = machine(slots=3, gpus=1).allot(needs(uses_gpu=True), [])
    assert on_gpu.gpus == ("GPU-0",)
    assert machine(slots=3, gpus=1).allot(needs(uses_gpu=True), [on_gpu]) is None
    assert machine(slots=3, gpus=1).allot(needs(), [on_gpu]).gpus == ()
    assert machine().allot(needs(uses_gpu=True), []).gpus == ()
    assert machine().allot(needs(gpus=1), []) is None
    assert machine(gpus=3).allot(needs(gpus=2), [on_gpu]).gpus == ("GPU-1", "GPU-2")


@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 64 * GIB), st.data())
def test_nothing_is_given_twice(slots, gpus, memory_bytes, data):
    whole, running = machine(slots, gpus, memory_bytes), []
    for _ in range(slots + 1):
        asked = needs(
            gpus=data.draw(st.integers(0, 2)),
            uses_gpu=data.draw(st.booleans()),
            memory_bytes=data.draw(st.integers(0, memory_bytes)),
        )
        given = whole.allot(asked, running)
        if given is not None:
            assert given.memory_bytes >= asked.memory_bytes
            assert len(given.gpus) >= asked.gpus
            running.append(given)
    assert len(running) <= slots
    assert sum(given.memory_bytes for given in running) <= memory_bytes
    taken = [gpu for given in running for gpu in given.gpus]
    assert len(taken) == len(set(taken)) <= gpus


def test_an_attempt_learns_what_it_was_given():
    on_gpus = environment_of(Allotment(("1", "GPU-7"), 3, GIB))
    assert on_gpus["CUDA_VISIBLE_DEVICES"] == "1,GPU-7"
    assert on_gpus["TAILOR_ATTEMPT_DEVICE"] == "cuda"
    assert on_gpus["OMP_NUM_THREADS"] == on_gpus["TAILOR_ATTEMPT_THREADS"] == "3"
    assert on_gpus["TAILOR_ATTEMPT_MEMORY_BYTES"] == str(GIB)
    on_cpu = environment_of(Allotment())
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_cpu["TAILOR_ATTEMPT_DEVICE"]) == ("", "cpu")
    assert "OMP_NUM_THREADS" not in on_cpu


# -- finding ---------------------------------------------------------------------------


def test_a_machine_offers_what_it_has():
    offered = find_resources(labels={"room": "12"})
    assert offered.slots == max(1, len(offered.gpus))
    assert offered.cpus == len(os.sched_getaffinity(0))
    assert 0 < offered.memory_bytes < psutil.virtual_memory().total
    assert {"host", "machine", "cpu_model", "room"} <= set(offered.labels)
    assert find_resources(slots=3, gpus=[], memory_gib=0.5).memory_bytes == GIB // 2


def test_what_is_not_there_cannot_be_offered():
    with pytest.raises(ResourcesError, match="there is no GPU 99"):
        find_resources(gpus=[99])
    for memory_gib in (0.0, -1.0, 1e9):
        with pytest.raises(ResourcesError, match="cannot be offered"):
            find_resources(gpus=[], memory_gib=memory_gib)


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "7", "memory.max": "9"}, [7, 9]),
        ("0::/of/the/host\n", {"memory.max": "5"}, [5]),
        ("4:memory:/a\n1:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "6"}, [6]),
        ("1:cpu,cpuacct:/\n", {}, []),
        (None, {}, []),
    ],
)
def test_the_memory_limit_of_a_container_is_found(tmp_path, own, files, limits):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    told = tmp_path / "own"
    if own is not None:
        told.write_text(own)
    assert list(found._cgroup_limits(tmp_path / "cgroup", told)) == limits


def test_a_gpu_that_pytorch_does_not_see_is_not_offered(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(found, "_DRIVERS", (str(tmp_path),))  # looks as if there were a driver
    assert find_resources().gpus == ()


def test_a_probe_that_fails_says_how_to_do_without(monkeypatch, tmp_path):
    monkeypatch.setattr(found, "_DRIVERS", (str(tmp_path),))
    monkeypatch.setattr(found.sys, "executable", "/bin/false")
    with pytest.raises(ResourcesError, match="--gpus none"):
        find_resources()
    assert find_resources(gpus=[]).gpus == ()
