"""BenchError: the one way in which a benchmark says that it has no figure to give."""


class BenchError(Exception):
    """The run cannot give a figure that may be believed. The text is one sentence for the person at the terminal."""
