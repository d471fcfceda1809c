"""What Prometheus is told, of an installation where things have happened."""

import pytest
from prometheus_client.parser import text_string_to_metric_families


def scraped(api) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample: its name, then its labels' values, sorted by label."""
    answer = api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.fixture(scope="module")
def happened(api_on_both):
    """The metrics after a fit, a cancelled search, one that waits, and a refused upload."""
    api = api_on_both
    device = api.enrol_with_kit()
    (task,) = device.lease(1)
    refused = {**device.result(task), "fence": 99}
    device.report(device.result(task), refused)
    device.answer_everything()
    api.run_fit()
    cancelled = api.search(device.target_id)
    api.http.post(f"/v1/searches/{cancelled['id']}/cancel")
    api.search(device.target_id)
    other = api.enrol(threads=2)
    api.search(other.target_id)
    api.http.get(f"/v1/searches/{cancelled['id']}")
    return scraped(api), device, api


def test_the_queue_is_told_by_kind(happened):
    metrics, _, _ = happened
    assert metrics["tailor_queue_depth"] == {("search",): 1}
    assert metrics["tailor_queue_oldest_seconds"][("search",)] >= 0
    assert metrics["tailor_jobs"] == {("search", "queued"): 1, ("search", "blocked"): 1}
    assert metrics["tailor_job_leases_overdue"] == {(): 0}


def test_searches_are_told_by_status_and_reason(happened):
    metrics, _, _ = happened
    assert metrics["tailor_searches"] == {("queued",): 2}
    assert metrics["tailor_searches_ended_total"] == {("user_cancelled", "cancelled"): 1}
    assert ("waiting_for_worker", "0.5") in metrics["tailor_search_phase_seconds"]
    assert metrics["tailor_job_attempts_total"] == {("succeeded",): 1}
    assert metrics["tailor_job_leases_expired_total"] == {(): 0}


def test_devices_and_what_they_measured_are_told(happened):
    metrics, device, _ = happened
    online = metrics["tailor_agents_online"]
    assert sum(online.values()) == 2
    assert [n for (target, _), n in online.items() if target == device.target_id] == [1]
    items = metrics["tailor_uploaded_items_total"]
    assert items[("rejected", "stale_lease")] == 1
    assert items[("accepted", "")] == metrics["tailor_measurements_total"][("accepted",)]
    assert metrics["tailor_workers_online"] == {(): 0}


def test_the_error_of_the_active_model_is_told(happened):
    metrics, device, _ = happened
    ((space, target, _), error), *_ = metrics["tailor_predictor_mape"].items()
    assert (space, target) == ("micro", device.target_id)
    assert 0 <= error < 0.01


def test_requests_are_told_by_the_template_of_their_route(happened):
    metrics, _, _ = happened
    counted = metrics["tailor_http_request_seconds_count"]
    assert counted[("GET", "/v1/searches/{search_id}", "200")] == 1
    assert counted[("POST", "/v1/searches", "201")] == 3
    assert not any("srch_" in label for labels in counted for label in labels)


def test_the_store_is_not_asked_for_every_scrape(happened):
    metrics, device, api = happened
    api.search(device.target_id)
    assert scraped(api)["tailor_queue_depth"] == metrics["tailor_queue_depth"]


def test_the_metrics_ask_for_a_key(api):
    assert api.client().get("/metrics").status_code == 401


def test_the_metrics_can_be_opened(serve):
    with serve(open_metrics=True) as api:
        assert api.client().get("/metrics").status_code == 200


@pytest.mark.postgres
def test_metrics_are_told_without_the_store(serve, new_store, cut_off):
    with serve(database_url=new_store("postgres", migrated=True), open_metrics=True) as api:
        cut_off(api.settings.database_url)
        api.client().get("/healthz")
        metrics = scraped(api)
        assert metrics["tailor_store_up"] == {(): 0}
        assert "tailor_queue_depth" not in metrics
        assert "tailor_http_request_seconds_count" in metrics
