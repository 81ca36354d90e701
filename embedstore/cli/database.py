"""``embedstore db``."""

from __future__ import annotations

import click

from embedstore.cli.state import State, pass_state


@click.group("db")
def db_command() -> None:
    """The database's tables: their revision and upgrade."""


@db_command.command("current")
@pass_state
def current_command(state: State) -> None:
    """Print the revision of the store's tables and that of this release."""
    from embedstore.cli.output import print_mapping
    from embedstore.storage.layout import SCHEMA_REVISION
    from embedstore.storage.revision import stored_revision

    with state.opened() as store:
        store.require()
        print_mapping(
            {"store": stored_revision(store.database), "release": SCHEMA_REVISION}, state.format_
        )


@db_command.command("upgrade")
@pass_state
def upgrade_command(state: State) -> None:
    """Bring the store's tables to this release's revision; a backup is taken first. Opening a store does it too."""
    from embedstore.cli.output import print_mapping
    from embedstore.storage.revision import bring_up_to_date, stored_revision

    with state.opened() as store:
        store.require()
        found = stored_revision(store.database)
        backup = bring_up_to_date(store.database, store.path)
        print_mapping(
            {
                "found": found, "store": stored_revision(store.database),
                "backup": None if backup is None else str(backup),
            },
            state.format_,
        )  # fmt: skip
