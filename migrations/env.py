"""Run revisions on the connection that `backyfs.metadata.schema.schema` passes, inside its transaction."""

from alembic import context

from backyfs.metadata.db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter columns
)
context.run_migrations()
