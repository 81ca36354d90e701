"""``embedstore train``: autoencoders for a user's own pictures and tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from embedstore.cli.state import State, pass_state


@click.group("train")
def train_command() -> None:
    """Train an encoder on your own data; it also decodes. What comes out is a folder, given to --encoder."""


def _shared(command: Any) -> Any:
    """The options of every training."""
    for option in reversed((
        click.option("--out", required=True, type=click.Path(path_type=Path), metavar="MODEL",
                     help="The folder that is made; it must not exist."),
        click.option("--latent-dim", type=int, metavar="N", help="Numbers in a vector.  [pictures 32, rows 16]"),
        click.option("--beta", type=float, metavar="B",
                     help="Weight of the KL: more for fewer, clearer dimensions, less for sharper decoding."
                     "  [pictures 1, rows 0.3]"),
        click.option("--epochs", type=int, metavar="N",
                     help="Most passes over the data.  [pictures 6,000 steps, rows 40]"),
        click.option("--minutes", type=float, metavar="M", help="Most minutes of the whole."),
        click.option("--batch", type=int, metavar="N", help="Items in a step.  [128]"),
        click.option("--learning-rate", type=float, metavar="R", help="Its height.  [pictures 0.002, rows 0.001]"),
        click.option("--seed", type=int, metavar="N", help="The same seed gives the same model.  [0]"),
        click.option("--bfloat16", is_flag=True, help="Mixed precision, for a GPU."),
    )):  # fmt: skip
        command = option(command)
    return command


@train_command.command("image")
@click.argument("folder", type=click.Path(path_type=Path))
@_shared
@click.option("--size", type=int, default=64, show_default=True, metavar="PIXELS",
              help="Every picture becomes as large.")
@click.option("--mode", type=click.Choice(["grey", "colour"]), help="Else what the first pictures are.")
@click.option("--fit", type=click.Choice(["crop", "pad", "stretch"]), default="crop", show_default=True,
              help="How a picture that is no square becomes one.")
@click.option("--background", default="255,255,255", show_default=True, metavar="R,G,B",
              help="What shows through alpha, and fills up.")
@click.option("--width", type=int, help="Channels of the first convolution; else 16 for grey pictures, 32 for colour.")
@pass_state
def image_command(state: State, /, folder: Path, out: Path, latent_dim: int | None, **options: Any) -> None:
    """Train a variational autoencoder on the pictures in FOLDER and below.

    Broken pictures are left out, and listed. Interrupted and called again in the same way, it goes on after its last
    epoch. MODEL/report.html shows the curves, reconstructions, samples and what each dimension does.

    \b
    embedstore train image faces/ --out models/faces --latent-dim 64
    embedstore ingest people faces/ --encoder models/faces
    """
    from embedstore.cli.output import print_mapping
    from embedstore.vae.image_network import ImageArchitecture
    from embedstore.vae.image_training import train_image

    width = options["width"]
    report = train_image(
        folder, out, size=options["size"], mode=options["mode"], fit=options["fit"],
        background=_colour(options["background"]),
        architecture=None if width is None else ImageArchitecture(width=width),
        latent_dim=32 if latent_dim is None else latent_dim, settings=_settings(options, None),
        device=state.device, progress=_progress(state),
    )  # fmt: skip
    for line in report.refused:
        state.note(f"refused: {line}")
    print_mapping(report.to_dict(), state.format_)


@train_command.command("table")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_shared
@click.option("--columns", metavar="C1,C2", help="The columns to learn; else all but key, id and _id.")
@click.option("--type", "types", multiple=True, metavar="COLUMN=TYPE",
              help="Read a CSV column as text, integer, number or boolean, whatever it looks like. Repeatable.")
@click.option("--hidden", type=int, default=256, show_default=True, help="Units of a hidden layer.")
@pass_state
def table_command(state: State, /, files: tuple[str, ...], out: Path, latent_dim: int | None, **options: Any) -> None:
    """Train a variational autoencoder on the rows of FILE: CSV, TSV, JSON, JSON lines, Parquet, Arrow.

    What the columns are is fixed by this; a category that was not seen counts as any other later on.

    \b
    embedstore train table patients.csv --out models/patients --columns age,sex,weight
    embedstore ingest patients patients.csv --encoder models/patients --key number
    """
    from embedstore.cli.output import print_mapping
    from embedstore.cli.state import pair_of
    from embedstore.ingesting.rows import table_rows
    from embedstore.vae.table_network import TableArchitecture
    from embedstore.vae.table_training import TABLE_SETTINGS, train_table

    columns = None if options["columns"] is None else [name.strip() for name in options["columns"].split(",")]
    report = train_table(
        table_rows(files, columns, dict(pair_of(one, "--type") for one in options["types"]), state.note), out,
        architecture=TableArchitecture(latent_dim=16 if latent_dim is None else latent_dim, hidden=options["hidden"]),
        settings=_settings(options, TABLE_SETTINGS), device=state.device, progress=_progress(state),
    )  # fmt: skip
    print_mapping(report.to_dict(), state.format_)


def _settings(options: dict[str, Any], start: Any) -> Any:
    """The settings of a training: what was asked for, over those that it starts from."""
    from dataclasses import replace

    from embedstore.vae.training import TrainingSettings

    names = ("epochs", "minutes", "batch", "learning_rate", "beta", "seed")
    asked = {name: options[name] for name in names if options[name] is not None}
    precision = "bfloat16" if options["bfloat16"] else "float32"
    return replace(start or TrainingSettings(), precision=precision, **asked)


def _progress(state: State) -> Any:
    """What tells of a training on stderr, a line an epoch."""
    if state.quiet:
        return lambda _: None
    return lambda line: None if ": step " in line and not sys.stderr.isatty() else print(line, file=sys.stderr)


def _colour(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise click.UsageError(f"--background {text!r} cannot be read; write it as R,G,B, such as 255,255,255")
    red, green, blue = (int(part) for part in parts)
    return red, green, blue
