"""Support code for tests that run real servers: processes, gateways, backends and raw sockets.

``process`` starts and ends programs and waits for conditions; ``gateway`` is a patgate under test with its own
configuration, ports and data; ``recorder`` is a backend that keeps the bytes it receives; ``rawhttp`` sends bytes and
reads exactly one response; ``sentinel`` checks every byte that a gateway sends to a backend, in ``recorder`` and
``scripted`` and in a ``tap``; ``scripted`` is a backend that misbehaves according to a script; ``remote`` controls a
program of tests/backends that contains a real client or server; ``sockets`` finds the process that serves a connection;
``cgi`` runs git's own server; ``plugin`` holds the fixtures and prints the logs of every running process when a test
fails.

No code here waits for a fixed time: ``process.wait_until`` polls a condition until its deadline. No code here
hard-codes a port or a path: ports are free loopback ports, and files are in pytest's temporary directory.
"""
