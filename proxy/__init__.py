"""patgate: personal access tokens in front of HTTP APIs that know nothing of them.

A request flows through ``gateway``, which decides from grants it holds in memory; ``authority`` hands those out and is
alone with the store; ``control`` and ``cli`` change what they say. ``core`` holds what all of them agree on.
Imports run downwards only (``.importlinter``): cli, supervisor, app > control, gateway, authority > services > store >
observe, settings > core.
"""

__version__ = "0.1.0"
