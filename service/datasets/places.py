"""Where files of data sets may lie on a worker."""

from collections.abc import Sequence
from pathlib import Path

from service.errors import InvalidRequestError


def allowed(path: str, roots: Sequence[Path]) -> Path:
    """The path with its links resolved, if it then lies under one of the roots.

    It need not exist: workers see other disks than the API.

    Raises:
        InvalidRequestError: it does not.
    """
    if not roots:
        raise InvalidRequestError(
            "no folder of the workers is open for data sets; whoever runs them sets "
            "TAILOR_DATASET_ROOTS, or upload the files instead",
            field="path",
        )
    named = Path(path)
    if not named.is_absolute():
        raise InvalidRequestError(f"{path} is no absolute path", field="path")
    try:
        found = named.resolve()
        inside = any(found.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, ValueError):  # links in a circle
        inside = False
    if not inside:
        raise InvalidRequestError(
            f"{path} does not lie under {', '.join(map(str, roots))}", field="path"
        )
    return found
