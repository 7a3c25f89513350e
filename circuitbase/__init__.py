"""The front door: the command line, and pictures of attribution graphs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("circuitbase")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
