"""Explanations of decisions: what a token gets for a method and path, step by step, and report-only findings."""
