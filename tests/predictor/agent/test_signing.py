"""Which file a task is about is the service's to say, and nobody else's."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from predictor.agent.signing import check_signature, task_message
from predictor.errors import NotAuthenticError

PARTS = ("tgt_1", "block:x:x1", "a" * 64, "b" * 64)


@pytest.fixture(scope="module")
def key():
    return Ed25519PrivateKey.generate()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def public(key) -> str:
    return text(key.public_key().public_bytes_raw())


def test_the_message_is_what_the_interface_says():
    assert task_message("t", "s", "m", "a") == b"tailor-task/1\nt\ns\nm\na"


def test_the_signature_of_the_service_is_accepted(key):
    message = task_message(*PARTS)
    check_signature(message, text(key.sign(message)), public(key))


@pytest.mark.parametrize("changed", range(4))
def test_no_part_of_a_task_can_be_exchanged(key, changed):
    signature = text(key.sign(task_message(*PARTS)))
    parts = [*PARTS[:changed], "another", *PARTS[changed + 1 :]]
    with pytest.raises(NotAuthenticError, match="nothing was run"):
        check_signature(task_message(*parts), signature, public(key))


def test_another_key_is_not_the_services(key):
    message = task_message(*PARTS)
    signature = text(Ed25519PrivateKey.generate().sign(message))
    with pytest.raises(NotAuthenticError):
        check_signature(message, signature, public(key))


@pytest.mark.parametrize("damaged", ["", "AAAA", "no base64!", "é", "A" * 88])
def test_what_is_no_signature_is_refused(key, damaged):
    with pytest.raises(NotAuthenticError):
        check_signature(b"message", damaged, public(key))


@pytest.mark.parametrize("damaged", ["", "AAAA", "no base64!"])
def test_without_the_services_key_nothing_is_authentic(key, damaged):
    with pytest.raises(NotAuthenticError):
        check_signature(b"message", text(key.sign(b"message")), damaged)
