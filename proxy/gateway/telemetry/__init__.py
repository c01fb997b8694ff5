"""Telemetry of requests in a worker: the access log, audit events, and usage reports.

The record phase hands over each exchange once. ``access_log`` writes lines; ``audit_events`` and ``usage_reporter``
collect batches for the authority. Everything a client can cause here is bounded.
"""
