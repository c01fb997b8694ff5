"""Results: figures with their bounds, the last result of every part, and docs/benchmarks.md."""
