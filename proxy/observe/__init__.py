"""What patgate tells its operators: metric definitions, the exposition format, log lines and the one redactor.

Workers keep plain integers and describe them once a second as a ``Snapshot`` (``snapshot.py``), whose names, labels and
buckets are those of ``metrics.py``. The authority adds the snapshots up and ``exposition.py`` renders the sums; it is
the only module that knows prometheus-client. Every log line of every process is made by ``logs.py``, so that there is
one place where a secret could leak and one place that stops it.
"""
