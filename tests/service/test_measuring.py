"""Asking a target's agents to measure a file, and waiting for the answer."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from search_core.errors import SearchInterrupted
from search_core.events import never
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.measurements.intake import NOISY_TRIES
from service.searches.measuring import NotMeasurableError, Stopwatch

MODEL = b"any file will do: the device answers by formula"


@pytest.fixture
def search(api, measured) -> dict:
    return api.search(measured.target_id)


@pytest.fixture
def attempt(api, search):
    """The claim of the search's job and the context of its attempt."""
    return api.claim(search)


@pytest.fixture
def stopwatch(search, attempt, measured):
    return new_stopwatch(search, attempt, measured, never)


def new_stopwatch(search, attempt, measured, should_stop) -> Stopwatch:
    return Stopwatch(attempt[1], search["id"], measured.target_id, should_stop)


def flagged(measured, times: int):
    """Answers whose first ones failed a noise gate."""
    left = [times]

    def answer(task: dict) -> dict:
        left[0] -= 1
        if left[0] >= 0:
            return measured.result(task, 2.0, flagged=True, note="p10 is 9% below the median")
        return measured.result(task, 1.0)

    return answer


def test_a_file_is_measured_by_an_agent_of_the_target(api, search, stopwatch, measured):
    tasks = []

    def answer(task: dict) -> dict:
        tasks.append(task)
        return measured.result(task, 0.5)

    with measured.answering(answer):
        found = stopwatch.measure(MODEL, "network:x", "certificate")
    assert (found.latency_ms, found.agent_id) == (0.5, measured.agent_id)
    (task,) = tasks
    assert (task["subject"], task["effort"]) == ("network:x", "certificate")
    assert measured.http.get(f"/v1/models/{task['model_sha256']}").content == MODEL
    event = api.events(search)[-1]
    assert event["type"] == "measurement"
    assert event["data"] == {"subject": "network:x", "effort": "certificate", "median_ms": 0.5}


def test_a_certificate_is_leased_before_the_table(api, search, attempt):
    device = api.enrol_with_kit()
    certificate = new_stopwatch(search, attempt, device, never)

    def answer(task: dict) -> dict:
        order.append(task["effort"])
        return device.result(task, 0.5)

    order: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(certificate.measure, MODEL, "network:x", "certificate")
        while not order or order[-1] == "table":
            assert len(order) < 60, "the certificate waits behind the whole table"
            device.report(*map(answer, device.lease(1)))
        waiting.result(timeout=60)


def test_a_flagged_certificate_is_asked_for_again(stopwatch, measured):
    with measured.answering(flagged(measured, 2)):
        found = stopwatch.measure(MODEL, "network:x", "certificate")
    assert (found.latency_ms, found.flagged) == (1.0, False)


def test_a_device_that_flags_every_certificate_is_too_noisy(stopwatch, measured):
    with (
        measured.answering(flagged(measured, 100)),
        pytest.raises(NotMeasurableError, match="p10 is 9% below") as raised,
    ):
        stopwatch.measure(MODEL, "network:x", "certificate")
    assert raised.value.code == "device_too_noisy"


def test_a_flagged_entry_of_a_table_is_asked_for_again(stopwatch, measured):
    with measured.answering(flagged(measured, 2)):
        found = stopwatch.measure(MODEL, "network:x", "table")
    assert (found.latency_ms, found.flagged) == (1.0, False)


def test_where_every_entry_of_a_table_is_flagged_the_fastest_has_to_do(stopwatch, measured):
    times = iter([3.0, 2.0, 4.0])

    def answer(task: dict) -> dict:
        return measured.result(task, next(times), flagged=True, note="p10 is 9% below the median")

    with measured.answering(answer):
        found = stopwatch.measure(MODEL, "network:x", "table")
    assert (found.latency_ms, found.flagged) == (2.0, True)


@pytest.mark.parametrize(
    ("failure", "code"), [("unsupported", "unsupported"), ("too_noisy", "device_too_noisy")]
)
def test_a_file_that_cannot_be_measured_fails_with_the_reason(stopwatch, measured, failure, code):
    tries = []

    def answer(task: dict) -> dict:
        tries.append(task)
        return measured.failure(task, failure)

    with measured.answering(answer), pytest.raises(NotMeasurableError) as raised:
        stopwatch.measure(MODEL, "network:x", "table")
    assert raised.value.code == code
    assert len(tries) == (1 if failure == "unsupported" else NOISY_TRIES)


def test_waiting_without_an_agent_says_so_and_ends_when_told_to(api):
    device = api.enrol_measured()
    search = api.search(device.target_id)
    attempt = api.claim(search)
    api.http.delete(f"/v1/agents/{device.agent_id}")

    def reason() -> str | None:
        found = api.read(search)["status_reason"]
        return found and found["code"]

    waiting = new_stopwatch(search, attempt, device, lambda: reason() == "no_agent_online")
    with pytest.raises(SearchInterrupted):
        waiting.measure(MODEL, "network:x", "table")
    assert reason() == "no_agent_online"


def test_an_attempt_that_lost_its_job_has_nothing_measured(api, attempt, stopwatch, measured):
    claim, _ = attempt
    with api.database.transaction() as session:
        jobs.held(session, claim.job_id, claim.fence).fence += 1
    with pytest.raises(LeaseLostError):
        stopwatch.measure(MODEL, "network:x", "table")
    assert measured.lease() == []
