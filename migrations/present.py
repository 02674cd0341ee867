"""Find out what a database already has, for revisions that only do what is missing.

Failed upgrades of backy2 leave databases in an intermediate state, and on MariaDB so do killed upgrades of ours.
No revision may rely on `alembic_version`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from alembic import op
from sqlalchemy import inspect

if TYPE_CHECKING:
    import sqlalchemy as sa


def tables() -> set[str]:
    """Return the names of the tables."""
    return set(inspect(op.get_bind()).get_table_names())


def columns(table: str) -> set[str]:
    """Return the names of the columns of a table."""
    return {column["name"] for column in inspect(op.get_bind()).get_columns(table)}


def indexes(table: str) -> set[str]:
    """Return the names of the indexes of a table."""
    return {str(index["name"]) for index in inspect(op.get_bind()).get_indexes(table)}


def add_missing_column(table: str, column: sa.Column[object]) -> None:
    """Add a column unless the table has it."""
    if column.name not in columns(table):
        with op.batch_alter_table(table) as batch:
            batch.add_column(column)


def create_missing_index(name: str, table: str, column: str) -> None:
    """Create an index unless the table has it."""
    if name not in indexes(table):
        op.create_index(name, table, [column])


def has_transactional_ddl() -> bool:
    """Return whether a rollback undoes the changes of a revision."""
    return op.get_bind().dialect.name != "mysql"


def refuse_downgrade() -> NoReturn:
    """Refuse to downgrade: shared pages do not contain everything that backy2 stored for each block."""
    raise NotImplementedError(
        "a database cannot be downgraded to an older schema; use the copy that was made before the upgrade, or "
        "exports: see docs/operate/upgrade.md"
    )
