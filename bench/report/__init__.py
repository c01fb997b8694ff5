"""Results: figures with their bounds, the last result of every part, docs/benchmarks.md and the plot of the README."""
