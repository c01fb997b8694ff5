"""Alembic's entry point: runs the scripts over the connection and in the transaction that ``store.migrate`` passes."""

from alembic import context

from proxy.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
