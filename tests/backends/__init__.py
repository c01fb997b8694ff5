"""Programs of the backends' environment: real servers and real clients, each controlled by a test over ``line``.

They run as ``python -m tests.backends.NAME FD`` in ``.venv-backends``, with the packages of the lock file in this
directory.
"""
