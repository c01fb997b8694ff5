"""patgate: personal access tokens in front of HTTP APIs that have none.

The ``gateway`` decides requests from grants in memory. The ``authority`` computes the grants and is the only process
that opens the store. ``control`` (the API) and ``cli`` change tokens, users and policies. ``core`` has the values and
decisions that all share. Imports run downwards only (``.importlinter``): cli, supervisor, app > control, gateway,
authority > services > store > observe, settings > core.
"""

__version__ = "0.1.0"
