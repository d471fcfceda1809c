"""A trained network as files, and the proof that each file computes what the network does."""

from search_core.export.formats import (
    folded_weights,
    onnx_bytes,
    safetensors_bytes,
    torch_export_bytes,
)
from search_core.export.parity import (
    check_parity,
    onnx_accuracy,
    onnx_parity,
    onnx_right_labels,
    parity_report,
)
from search_core.export.standalone import python_source

__all__ = [
    "check_parity",
    "folded_weights",
    "onnx_accuracy",
    "onnx_bytes",
    "onnx_parity",
    "onnx_right_labels",
    "parity_report",
    "python_source",
    "safetensors_bytes",
    "torch_export_bytes",
]
