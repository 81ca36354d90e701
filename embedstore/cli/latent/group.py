"""The group ``embedstore latent``, the options that its commands share, and how points are shown."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.state import State


@click.group("latent")
def latent_command() -> None:
    """Compute in the spaces of a collection."""


space_option = click.option("--space", metavar="NAME", help="The space; else the collection's default one.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn at random.")
where_option = click.option("--where", metavar="EXPR", help="Only records for which this holds.")
k_option = click.option("-k", "k", type=int, default=10, show_default=True, metavar="N", help="How many records.")
out_option = click.option("--out", metavar="FILE", help="Draw what is decoded: PNG or WebP side by side, GIF moving.")


def shown_hit(hit: Any) -> dict[str, Any]:
    """A hit as a line of a table."""
    return {"key": hit.key, "score": hit.score, "text": hit.record.summary}


def show_points(state: State, rows: list[list[Any]], out: str | None, *, moving: bool = False) -> None:
    """Draw what rows of points decode to; else print the rows that they decode to, or the record nearest to each."""
    from embedstore.cli.output import print_rows
    from embedstore.encoders.spec import TABLE_VAE
    from embedstore.latent.strips import check_strip, save_strip

    if out is not None:
        check_strip(out)
        save_strip([[point.decode() for point in row] for row in rows], out, moving=moving)
        state.note(f"wrote {out}")
        return
    if rows and rows[0] and rows[0][0].space.root.family == TABLE_VAE:
        print_rows((point.decode() for row in rows for point in row), state.format_)
        return
    found = []
    for line, row in enumerate(rows):
        for number, point in enumerate(row):
            nearest = point.nearest(1, include_sources=True)
            place = {"row": line, "step": number} if len(rows) > 1 else {"step": number}
            found.append({**place, **(shown_hit(nearest[0]) if nearest else {})})
    print_rows(found, state.format_)


def read_pairs(file: str) -> list[list[str]]:
    """Lines of keys with tabs between."""
    from embedstore.errors import InvalidInput

    try:
        with open(file, encoding="utf-8-sig") as lines:
            pairs = [line.rstrip("\n").split("\t") for line in lines]
    except OSError as error:
        raise InvalidInput(f"the pairs {file!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"the pairs {file!r} are not UTF-8 text") from None
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2 and pair != [""]:
            raise InvalidInput(f"{file}, line {number}: {len(pair)} parts; a pair is two keys with a tab between")
    return [pair for pair in pairs if pair != [""]]
