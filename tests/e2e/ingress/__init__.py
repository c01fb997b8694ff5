"""The suite over every ingress file: one set of rows, which docs/ingress.md shows as a matrix."""
