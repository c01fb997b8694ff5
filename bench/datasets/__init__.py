"""Stores filled at once: users and tokens, a store after years of use, and its audit log."""
