"""Which build of the gateway this installation has: the modules as they are written, or compiled from them."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec


def is_compiled() -> bool:
    """Whether a worker of this installation runs the compiled modules. They are looked up and not loaded."""
    spec = find_spec("proxy.gateway.pipeline")
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)
