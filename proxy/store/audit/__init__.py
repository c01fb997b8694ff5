"""The audit log at rest: the hash chain, its queries, events of requests, and reports of report-only routes."""
