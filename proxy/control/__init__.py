"""The control plane over HTTP: the management API, health and metrics.

Data flows from a request through one handler into one service method and back as JSON or problem+json. The same
handlers are served twice: on the TCP listener (health and metrics) and, with file permissions as the credential, on the
control socket that the command line uses (the API as well). Browsers have no way in: no CORS, no ambient credential,
``Host`` checked, bodies only as JSON.

Primitives: ``Plane`` (what is served), the two applications, request models, the one place that turns errors into
problems.
"""
