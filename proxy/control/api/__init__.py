"""`/api/v1`: one table of operations, from which the routes of both listeners and the OpenAPI document are made.

Data flows from a request through `endpoint`, which knows who asks and checks its shape, into the handler that its row
of the table names, from there into one method of the services, and back as JSON.  Errors are turned into problems in
one place (`proxy.control.problems`).

Primitives: `Operation` (a row), `Call` (a checked request), `OPERATIONS` (the table), `Endpoints` (the routes),
`openapi.document`.  One module per noun holds its models, its handlers and its rows.
"""
