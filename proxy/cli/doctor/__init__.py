"""Probes a deployment from outside and reports what is wrong in it (``patgate doctor``).

``client`` sends one request exactly as given and reads the response. ``findings`` has the vocabulary of a report.
``deployment`` describes what is probed. ``refusals``, ``arrivals`` and ``surroundings`` have the checks: what must be
refused, what arrives at the backend (seen through ``patgate whoami``), and what can be reached around patgate.
``examination`` has their order.

It is a client only: it stops nothing, changes nothing, and sends a fixed number of requests, one after the other.
"""
