"""Processes killed at the worst moment, under load."""
