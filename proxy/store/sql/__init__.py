"""Pieces of SQL that repositories share: hints for the planner, bounded counts, what each database writes itself."""
