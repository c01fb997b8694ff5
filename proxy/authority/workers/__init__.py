"""The authority's side of the gateway workers: the server on the unix socket, and what workers report.

``server`` answers look-ups and pushes changes (``broadcast``). Reports come in through ``report_parsing``;
``recorder`` writes usage and audit events in batches, and ``metrics_aggregator`` adds up the counters.
"""
