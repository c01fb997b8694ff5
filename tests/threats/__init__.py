"""Tests of docs/threat-model.md, section by section, against a running gateway."""
