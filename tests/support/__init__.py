"""Machinery for tests that run real servers: processes, gateways, backends and raw sockets.

``process`` starts and ends programs and waits for conditions; ``gateway`` is a patgate under test with its own
configuration, ports and data; ``recorder`` is a backend that keeps the bytes it was sent; ``rawhttp`` sends bytes and
reads exactly one response; ``sentinel`` checks every byte that a gateway sends to a backend, in ``recorder`` and
``scripted`` and in a ``tap``; ``scripted`` is a backend that misbehaves as told; ``remote`` works a program of
tests/backends, with a real client or server in it; ``sockets`` says which process serves a connection; ``cgi`` runs
git's own server; ``plugin`` holds the fixtures and prints the logs of every running process under a failing test.

Nothing here waits for a fixed time: ``process.wait_until`` polls a condition until its deadline. Nothing here names a
port or a path of the machine: ports are free ones of the loopback, files live under pytest's temporary directory.
"""
