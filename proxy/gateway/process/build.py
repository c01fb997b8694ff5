"""Detects which build of the gateway this installation has: pure Python modules, or modules compiled from them."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec


def is_compiled() -> bool:
    """Whether a worker of this installation runs the compiled modules. They are found without being loaded."""
    spec = find_spec("proxy.gateway.pipeline")
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)
