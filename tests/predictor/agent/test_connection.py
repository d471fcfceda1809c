"""The identity of an agent; the requests themselves are tested against the API."""

import stat

from predictor.agent.connection import Identity

IDENTITY = Identity("http://tailor", "agent", "target", "secret", "d" * 64, 2)


def test_an_identity_survives_a_restart(tmp_path):
    path = tmp_path / "state" / "identity.json"
    IDENTITY.save(path)
    assert Identity.load(path) == IDENTITY


def test_only_its_owner_reads_the_token(tmp_path):
    path = tmp_path / "identity.json"
    IDENTITY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
