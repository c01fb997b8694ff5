"""BenchError: raised when a benchmark has no figure to report."""


class BenchError(Exception):
    """The run has no valid figure. The text is one sentence for the person at the terminal."""
