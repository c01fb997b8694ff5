"""Backends behind the gateway: the cheap one that all peers share, and one that fails in every way."""
