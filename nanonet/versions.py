"""Versions of Python and of the packages that decide a result."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("nanonet", "torch", "transformers", "peft", "accelerate", "triton", "onnxruntime", "datasets")


def versions() -> dict[str, str | None]:
    """Versions by package; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
