"""What a search leaves behind: its networks in several forms, and a signed manifest."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from search_core.data.dataset import Dataset
from search_core.export import (
    check_parity,
    onnx_bytes,
    parity_report,
    python_source,
    safetensors_bytes,
    torch_export_bytes,
)
from search_core.nn.network import Network
from search_core.search import SearchResult
from service.agents.signing import Signer
from service.version import VERSION

_BINARY = "application/octet-stream"
_JSON = "application/json"
_PARITY_IMAGES = 32


@dataclass
class Files:
    """Content and media type of files by their names."""

    content: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    """Largest absolute difference of scores from the trained network's, by file."""

    def add(self, name: str, content: bytes, media_type: str = _BINARY) -> None:
        """Add a file."""
        self.content[name] = (content, media_type)


def add_network(
    files: Files,
    prefix: str,
    network: Network,
    data: Dataset,
    deployed: Mapping[tuple[str, int], bytes],
    facts: Mapping[str, object],
) -> dict[str, str]:
    """Add a trained network in every form; returns the file names by what they hold.

    Args:
        prefix: of the names, where there are several networks.
        deployed: the very files that targets run, by precision and batch; the first is
            ``model.onnx``.

    Raises:
        ExportError: a file computes something else than the network does.
    """
    first, *others = deployed
    names = {"onnx": f"{prefix}model.onnx"}
    forms: dict[str, bytes] = {}
    quantised: dict[str, bytes] = {}
    for form in (first, *others):
        precision, batch = form
        key = "onnx" if form == first else f"onnx_{precision}_batch{batch}"
        names[key] = names.get(key, f"{prefix}model_{precision}_batch{batch}.onnx")
        (forms if precision == "float32" else quantised)[names[key]] = deployed[form]
    if quantised and ("float32", first[1]) not in deployed:
        names["onnx_float32"] = f"{prefix}model_float32.onnx"
        forms[names["onnx_float32"]] = onnx_bytes(network, batch=first[1])
    names |= {
        "torch_export": f"{prefix}network.pt2",
        "code": f"{prefix}network.py",
        "weights": f"{prefix}weights.safetensors",
    }
    forms[names["torch_export"]] = torch_export_bytes(network)
    forms[names["code"]] = python_source(network, facts).encode()
    forms[names["weights"]] = safetensors_bytes(network)
    images = next(data.test_batches(_PARITY_IMAGES)).images.cpu()
    files.parity |= check_parity(network, forms, images)
    files.parity |= parity_report(network, quantised, images)  # int8 differs; told, not held
    for name, content in {**forms, **quantised}.items():
        files.add(name, content, "text/x-python" if name.endswith(".py") else _BINARY)
    return names


def add_manifest(
    files: Files,
    stored: Mapping[str, str],
    found: SearchResult,
    told: Mapping[str, Any],
    signer: Signer,
) -> None:
    """Add ``manifest.json``, which says all that is known, and its signature beside it.

    It holds what a reproduction is compared with: seed and spec in `told`, the logits after the
    last step to the last bit, and every network that was decided on the way.

    Args:
        stored: sha256 of each file.
    """
    manifest = {
        "format": "tailor-manifest/2",
        **told,
        "search_core": search_section(found),
        "parity": files.parity,
        "files": dict(stored),
        "software": software(),
    }
    content = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    signature = {
        "algorithm": "Ed25519",
        "file": "manifest.json",
        "signature": signer.sign(content),
        "public_key": signer.public_key,
    }
    files.add("manifest.json", content, _JSON)
    files.add("manifest.sig.json", json.dumps(signature, indent=1).encode(), _JSON)


def search_section(found: SearchResult) -> dict[str, Any]:
    """Where a search ended, as JSON that holds every bit of it."""
    return {
        "steps": found.steps,
        "log_probabilities": _finite(found.log_probabilities),
        "frozen": {str(slot): choice for slot, choice in sorted(found.frozen.items())},
    }


def software() -> dict[str, Any]:
    """What a search's last bits depend on beside its spec."""
    return {
        "tailor": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": os.environ.get("TAILOR_ATTEMPT_DEVICE", "cpu"),
    }


def _finite(rows: torch.Tensor) -> list[list[float | None]]:
    """Rows as JSON can hold them: None for a candidate that a slot does not have."""
    return [[None if value == -torch.inf else value for value in row] for row in rows.tolist()]
