"""The GPUs that PyTorch sees, as JSON: ``python -m service.workers.probe``, a process apart."""

import json
import os
import sys

import torch


def main() -> int:
    """Print each GPU's id, model and memory; returns the exit status."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                # an index counts among those that are visible here, the id everywhere
                "id": ids[index].strip() if ids else str(index),
                "model": properties.name,
                "memory_bytes": properties.total_memory,
            }
        )
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
