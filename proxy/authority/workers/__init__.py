"""The authority's side of the gateway workers: the server on the unix socket, and the workers' reports.

``server`` answers look-ups and pushes changes (``broadcast``). ``report_parsing`` validates reports, ``recorder``
writes usage and audit events in batches, and ``metrics_aggregator`` sums the counters.
"""
