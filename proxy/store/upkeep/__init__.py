"""Writes that are no changes, because no decision depends on them: how they are repeated, and who does which task."""
