"""Profiles of targets."""

from dataclasses import asdict, fields, replace

from predictor.measurements import TargetProfile

PROFILE = TargetProfile(
    "Cortex-A76", "aarch64", "Linux 6.1", "onnxruntime", "1.22", "CPUExecutionProvider", 1, "f", 1
)


def test_equal_profiles_are_the_same_target():
    assert TargetProfile(**asdict(PROFILE)).digest == PROFILE.digest


def test_a_change_of_any_field_is_another_target():
    digests = {PROFILE.digest}
    for field in fields(PROFILE):
        value = getattr(PROFILE, field.name)
        changed = value + 1 if isinstance(value, int) else value + "x"
        digests.add(replace(PROFILE, **{field.name: changed}).digest)
    assert len(digests) == 1 + len(fields(PROFILE))
