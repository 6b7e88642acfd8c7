"""Alembic's entry: runs on the connection and in the transaction that `store.migrate` hands over."""

from alembic import context

from firebrick.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
