"""threats.md, section by section, against a running gateway."""
