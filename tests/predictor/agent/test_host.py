"""What a host tells about itself."""

import json
import os

from predictor.agent import host


def test_a_host_always_has_a_device_model_and_a_system():
    assert host.device_model().strip() == host.device_model() != ""
    assert len(host.system().split()) >= 2


def test_transient_facts_can_be_uploaded_as_json():
    facts = host.transient_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu_count"] == os.cpu_count()
