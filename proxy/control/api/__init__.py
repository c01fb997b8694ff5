"""``/api/v1``: one table of operations, from which the routes of both listeners and the OpenAPI document are built.

A request goes through ``endpoint``, which authenticates the caller and validates the request, into the handler of its
operation, from there into one method of the services, and back as JSON. Errors are turned into problems in one place
(``proxy.control.problems``).

Primitives: ``Operation`` (a row), ``Call`` (a validated request), ``OPERATIONS`` (the table), ``endpoint.routes``,
``openapi.document``. One module per noun holds its models, its handlers and its operations.
"""
