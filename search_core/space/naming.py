"""How a space that differs from its family's defaults is named."""

from collections.abc import Mapping


def variant_name(family: str, options: Mapping[str, tuple[float, float]]) -> str:
    """The family's name, and a word for each option that is not its default.

    Args:
        options: letter -> the value and the default.
    """
    words = [
        f"{letter}{value:g}" for letter, (value, default) in options.items() if value != default
    ]
    return "_".join([family, *words])
