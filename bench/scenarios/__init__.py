"""The scenarios that are measured: each has ``measure(run: Run) -> Part`` and one line in ``bench.__main__``."""
