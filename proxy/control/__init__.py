"""Control plane over HTTP: the management API, health and metrics.

A request goes through one handler into one service method, and the result back as JSON or problem+json. The same
handlers are served on the TCP listener, with a token as the credential, and on the control socket that the command line
uses, with file permissions as the credential. Browsers cannot use the API: no CORS, no ambient credential, ``Host``
checked, bodies only as JSON.

Primitives: ``ControlRuntime`` (what the process provides), the two applications, the request models, and the one place
that turns errors into problems.
"""
