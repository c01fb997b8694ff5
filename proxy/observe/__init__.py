"""What operators see: metric definitions, their exposition, log records and the one redactor.

Data flows out only. Processes count in plain integers; the authority sums their snapshots and ``exposition`` renders
them when scraped. Log records are JSON lines; all pass one redactor, which leaves of a token its public prefix, and
have control characters escaped.

Primitives: ``metrics`` (name, kind, help, labels, buckets of each), ``exposition``, ``logs``.
"""
