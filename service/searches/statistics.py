"""How sure one can be of an accuracy, and of a difference between two."""

from math import sqrt

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def accuracy_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for an accuracy, given `right` of `n` images."""
    share, z = right / n, Z95
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy_gap(only_first: int, only_second: int, n: int) -> tuple[float, tuple[float, float]]:
    """By how much the first of two networks is more accurate on the same images.

    The interval is that of Agresti and Min (2005) for matched pairs: Wald's, after half an
    image was added to each cell of the table.

    Args:
        only_first: images that the first labels rightly and the second does not.
        n: images.

    Returns:
        The difference of accuracies, and its 95 % interval.
    """
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2.0
    middle = (b - c) / total
    half = Z95 * sqrt(b + c - (b - c) ** 2 / total) / total
    return (only_first - only_second) / n, (max(-1.0, middle - half), min(1.0, middle + half))
