"""How far the files of a network are from the network, in class scores."""

import copy
from collections.abc import Mapping
from io import BytesIO
from pathlib import PurePath
from typing import Any

import torch
from safetensors.torch import load

from search_core.data.dataset import Dataset
from search_core.errors import ExportError
from search_core.nn.network import Network

TOLERANCE = 1e-3
"""Largest difference that is put down to rounding, relative to the largest absolute score."""


def parity_report(
    network: Network, files: Mapping[str, bytes | str], images: torch.Tensor
) -> dict[str, float]:
    """Largest absolute difference between each file's scores and the network's.

    Args:
        files: content by name. What a file is says its suffix: ``.onnx``, ``.pt2`` (a
            torch.export program), ``.safetensors``, ``.py`` (a standalone module, run here
            with the weights of the safetensors file beside it). Others are left out.
        images: (N, C, H, W) float32, normalised.

    Returns:
        By file name; NaN where scores are not numbers.

    Raises:
        ExportError: a standalone module without weights beside it.
    """
    reference = copy.deepcopy(network).cpu().eval()
    images = images.cpu()
    with torch.no_grad():
        expected = reference(images)
    report = {}
    for name in files:
        got = _scores(name, files, reference, images)
        if got is not None:
            report[name] = float((got - expected).abs().max())
    return report


def check_parity(
    network: Network, files: Mapping[str, bytes | str], images: torch.Tensor
) -> dict[str, float]:
    """`parity_report`, with every difference within `TOLERANCE` of the largest score.

    Raises:
        ExportError: naming the file, its difference and the scale of the scores.
    """
    report = parity_report(network, files, images)
    with torch.no_grad():
        reference = copy.deepcopy(network).cpu().eval()
        scale = float(reference(images.cpu()).abs().max())
    for name, difference in report.items():
        if not difference <= TOLERANCE * scale:  # NaN is no agreement
            raise ExportError(
                f"{name} differs from the network by {difference:.3g} where scores reach "
                f"{scale:.3g}; at most {TOLERANCE:g} of that is rounding"
            )
    return report


def onnx_parity(network: Network, model: bytes, images: torch.Tensor) -> float:
    """Largest absolute difference between torch's and ONNX Runtime's scores on `images`.

    Args:
        images: (N, C, H, W) float32, normalised; ONNX Runtime sees one at a time.
    """
    return parity_report(network, {"model.onnx": model}, images)["model.onnx"]


@torch.no_grad()
def _scores(
    name: str, files: Mapping[str, bytes | str], reference: Network, images: torch.Tensor
) -> Any:
    """Class scores (N, n_classes) of the file, None if it has none."""
    content = files[name]
    match PurePath(name).suffix:
        case ".onnx":
            return _onnx_scores(_binary(content), images)
        case ".pt2":
            program = torch.export.load(BytesIO(_binary(content)))
            return program.module()(images)
        case ".safetensors":
            restored = copy.deepcopy(reference)
            restored.load_state_dict(load(_binary(content)))
            return restored(images)
        case ".py":
            module: dict[str, Any] = {"__name__": "network"}
            exec(compile(content, name, "exec"), module)  # noqa: S102 - written by us, just now
            standalone = module["Network"]()
            standalone.load_state_dict(load(_weights(name, files)))
            return standalone.eval()(images)
        case _:
            return None


def onnx_right_labels(model: bytes, data: Dataset) -> torch.Tensor:
    """Which held-out test images the ONNX file labels rightly; (n_test,) bool."""
    right = [
        _onnx_scores(model, batch.images.cpu()).argmax(1) == batch.labels.cpu()
        for batch in data.test_batches(256)
    ]
    return torch.cat(right)


def onnx_accuracy(model: bytes, data: Dataset) -> float:
    """Share of held-out test images that the ONNX file labels rightly, in [0, 1]."""
    return onnx_right_labels(model, data).double().mean().item()


def _onnx_scores(model: bytes, images: torch.Tensor) -> torch.Tensor:
    """Scores (N, n_classes); the file's fixed batch is filled up with blank images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    blank = images.new_zeros((-len(images) % size, *images.shape[1:]))
    rows = [
        session.run(None, {"input": group.contiguous().numpy()})[0]
        for group in torch.split(torch.cat([images, blank]), size)
    ]
    return torch.cat([torch.from_numpy(row) for row in rows])[: len(images)]


def _weights(name: str, files: Mapping[str, bytes | str]) -> bytes:
    for other, content in files.items():
        if other.endswith(".safetensors"):
            return _binary(content)
    raise ExportError(f"{name} has no weights of its own; give a .safetensors file beside it")


def _binary(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content
