"""The installed version of Tailor."""

from importlib.metadata import version

VERSION = version("tailor-nas")
