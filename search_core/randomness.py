"""Random streams addressed by counters, so that a resumed run needs no generator state.

Every draw of a run is a pure function of (seed, purpose, counters): the batch order of an
epoch, the augmentation and the sampled path of a step. A run that stops at step 517 and
resumes there draws exactly what the unbroken run would have drawn.
"""

import hashlib

import torch


def stream(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for this purpose at these counters, independent of every other."""
    address = f"{seed}:{purpose}:{':'.join(map(str, counters))}"
    digest = hashlib.blake2b(address.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
