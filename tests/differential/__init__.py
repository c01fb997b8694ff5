"""Differential tests of paths: for any target, a real server runs the operation that the gateway authorised.

One gateway is in front of four third-party servers (``tests.support.pathservers``), selected by ``Host``. Each target
goes to all four. A server's response headers show the path it read and the operation its router selected, and the
server writes the number of every request it received to a file.

``targets`` creates the targets: a corpus of known tricks, mutations of it from a seed, and hypothesis strategies over
the same pieces. ``client`` sends them, pipelined. ``judge`` has the routes with their permissions, and compares.
``campaign`` runs everything, for the tests and for ``make soak``, and minimises the findings.
"""
