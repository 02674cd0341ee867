"""What a database has, for revisions that do only what is not done yet.

Failed upgrades of backy2 leave databases half way, and on MariaDB so does an upgrade of ours that was killed:
no revision may rely on what `alembic_version` says.
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
    """Make an index unless the table has it."""
    if name not in indexes(table):
        op.create_index(name, table, [column])


def has_transactional_ddl() -> bool:
    """Tell whether what a revision does is undone by a rollback."""
    return op.get_bind().dialect.name != "mysql"


def refuse_downgrade() -> NoReturn:
    """Refuse to go back: rows of shared pages cannot say what backy2 kept for each block."""
    raise NotImplementedError(
        "a database cannot be taken back to an older schema; go back with the copy that was made before the "
        "upgrade, or with exports: see docs/operate/upgrade.md"
    )
