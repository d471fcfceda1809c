"""Checkpoints on disk."""

import pytest
import torch

from search_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from search_core.errors import CheckpointError

CHECKPOINT = Checkpoint(
    "search",
    17,
    "a" * 64,
    {
        "logits": torch.tensor([[0.1, 1 / 3]], dtype=torch.float64),
        "weights": {"conv": torch.arange(6.0).view(2, 3)},
        "frozen": {2: 1, 0: 5},
        "multiplier": 0.1 + 0.2,
    },
)


def test_what_is_loaded_is_what_was_saved(tmp_path, identical):
    path = tmp_path / "deep" / "down" / "search.ckpt"
    save_checkpoint(CHECKPOINT, path)
    loaded = load_checkpoint(path)
    assert (loaded.stage, loaded.step, loaded.fingerprint) == ("search", 17, "a" * 64)
    assert identical(loaded.state, CHECKPOINT.state)


def test_saving_replaces_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "search.ckpt"
    path.write_bytes(b"an older one")
    save_checkpoint(CHECKPOINT, path)
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path).step == 17


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "search.ckpt"
    save_checkpoint(CHECKPOINT, path)
    unstorable = Checkpoint("search", 18, "a" * 64, {"function": lambda: None})
    with pytest.raises(Exception, match="lambda"):
        save_checkpoint(unstorable, path)
    assert load_checkpoint(path).step == 17


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "absent"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "search.ckpt"
    save_checkpoint(CHECKPOINT, path)
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            path.write_bytes(bytes(byte ^ 0xFF for byte in content))
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint")
        case "absent":
            path.unlink()
    with pytest.raises(CheckpointError, match=r"search\.ckpt is no readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, {"stage": "search", "weights": 1}])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    path = tmp_path / "search.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize(("stage", "letter"), [("train", "a"), ("search", "b")])
def test_a_checkpoint_of_another_run_is_refused(stage, letter):
    CHECKPOINT.expect("search", "a" * 64)
    with pytest.raises(CheckpointError, match="start without it"):
        CHECKPOINT.expect(stage, letter * 64)
