"""Metrics and logs: metric definitions, the exposition format, log lines and the redactor.

Workers count in plain integers and send them once a second as a ``Snapshot`` (``snapshot.py``), with the names, labels
and buckets of ``metrics.py``. The authority adds the snapshots up and ``exposition.py`` renders the sums; only that
module imports prometheus-client. ``logs.py`` makes all log lines of every process, so that redaction happens in one
place.
"""
