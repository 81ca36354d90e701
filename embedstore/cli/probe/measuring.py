"""``embedstore probe``: what captured layers know."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.probe.group import chosen_layers, layer_options, prefix_option, probe_command, site_option
from embedstore.cli.state import State, pass_state

_MEASURES = ["cka", "cka-unbiased", "cka-rbf", "svcca", "rsa", "procrustes", "mutual-knn"]


@probe_command.command("linear")
@click.argument("collection")
@click.argument("label")
@click.option("--kind", type=click.Choice(["linear", "mlp", "mass-mean"]), default="linear", show_default=True,
              help="Logistic regression, one hidden layer, or the difference of two means.")
@click.option("--task", type=click.Choice(["auto", "classes", "number", "several"]), default="auto", show_default=True,
              help="What LABEL holds; several: lists of labels.")
@click.option("--group-by", metavar="FIELD", help="Records that agree in it are never parted.")
@click.option("--control-by", metavar="FIELD", help="Of which each value has one random label in the control task.")
@click.option("--no-control", is_flag=True, help="Without the control task.")
@click.option("--folds", type=int, default=5, show_default=True, metavar="N", help="1 holds one fifth out, once.")
@click.option("--beside", multiple=True, metavar="PREFIX", help="Score other captured layers, too. Repeatable.")
@click.option("--store-as", metavar="NAME", help="Keep the probe with each layer's space.")
@click.option("--plot", metavar="FILE", help="Draw it: PNG, SVG or PDF.")
@layer_options
@pass_state
def linear_command(state: State, /, collection: str, label: str, **options: Any) -> None:
    """Print how well a probe reads the field LABEL from each layer, on records that were held out.

    \b
    embedstore probe linear papers venue --plot venue.png
    """
    from embedstore.cli.output import print_mapping, print_rows
    from embedstore.plots import check_picture, draw_layers
    from embedstore.probing import linear

    plot, layers = options.pop("plot"), chosen_layers(options.pop("layers"))
    if plot is not None:
        check_picture(plot)
    with state.collection(collection) as found:
        report = linear(found, label, layers=layers, control=not options.pop("no_control"), **options)
    if plot is not None:
        curves: dict[str, dict[int, Any]] = {
            report.kind: {one.layer: (one.score, one.low, one.high) for one in report.layers}
        }
        if all(one.control is not None for one in report.layers):
            curves["control"] = {one.layer: one.control for one in report.layers}
        for name, value in report.baselines.items():
            curves[name] = {one.layer: value for one in report.layers}
        draw_layers(curves, f"{collection}: {label}", report.metric, plot)
        state.note(f"wrote {plot}")
    if state.format_ == "json":
        print_mapping(report.to_dict(), state.format_)
        return
    print_rows(report.to_rows(), state.format_)
    if report.without_control is not None:
        state.note(f"no control task: {report.without_control}")
    told = ", ".join(f"{name} {value:.4f}" for name, value in report.baselines.items())
    state.note(f"{report.n:,} records; without states: {told}; best: layer {report.best.layer}")


@probe_command.command("score")
@click.argument("collection")
@click.argument("name")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--layer", type=int, required=True, metavar="N", help="Of which layer.")
@prefix_option
@site_option
@pass_state
def score_command(state: State, /, collection: str, name: str, texts: tuple[str, ...], **options: Any) -> None:
    """Print what the probe NAME, kept by linear --store-as, says of new texts."""
    from embedstore.cli.output import print_rows
    from embedstore.probing import probe
    from embedstore.probing.examples import layer_spaces

    with state.collection(collection) as found:
        space = layer_spaces(found, [options["layer"]], prefix=options["prefix"], site=options["site"])[0]
        kept = probe(found.space(space.name), name)
        shares = kept.probabilities(list(texts))
        rows = [
            {"text": text, "says": kept.classes[int(line.argmax())], "probability": round(float(line.max()), 4)}
            for text, line in zip(texts, shares, strict=True)
        ]
    print_rows(rows, state.format_)


@probe_command.command("code")
@click.argument("collection")
@click.argument("label")
@layer_options
@pass_state
def code_command(state: State, /, collection: str, label: str, **options: Any) -> None:
    """Print how many bits the field LABEL takes once a layer is known, by the online code."""
    from embedstore.cli.output import print_rows
    from embedstore.probing import description_length

    layers = chosen_layers(options.pop("layers"))
    with state.collection(collection) as found:
        print_rows([one.to_dict() for one in description_length(found, label, layers=layers, **options)], state.format_)


@probe_command.command("mix")
@click.argument("collection")
@click.argument("label")
@click.option("--group-by", metavar="FIELD", help="Records that agree in it are never parted.")
@layer_options
@pass_state
def mix_command(state: State, /, collection: str, label: str, **options: Any) -> None:
    """Print the share of each layer in the mixture that tells the field LABEL best."""
    from embedstore.cli.output import print_mapping
    from embedstore.probing import scalar_mix

    layers = chosen_layers(options.pop("layers"))
    with state.collection(collection) as found:
        print_mapping(scalar_mix(found, label, layers=layers, **options).to_dict(), state.format_)


@probe_command.command("similarity")
@click.argument("collection")
@click.option("--measure", type=click.Choice(_MEASURES), default="cka", show_default=True, help="By which measure.")
@click.option("--other-prefix", metavar="TEXT", help="Compare with the layers of another model under this prefix.")
@click.option("--sample", type=int, default=1000, show_default=True, metavar="N", help="By how many records.")
@click.option("--plot", metavar="FILE", help="Draw a heat map: PNG, SVG or PDF.")
@layer_options
@pass_state
def similarity_command(state: State, /, collection: str, **options: Any) -> None:
    """Print how alike the layers are, to each other or to those of another model."""
    from embedstore.cli.output import print_mapping, print_rows
    from embedstore.plots import check_picture
    from embedstore.probing import similarity

    plot, layers = options.pop("plot"), chosen_layers(options.pop("layers"))
    if plot is not None:
        check_picture(plot)
    with state.collection(collection) as found:
        made = similarity(found, layers=layers, **options)
    if plot is not None:
        made.plot(plot)
        state.note(f"wrote {plot}")
    if state.format_ == "json":
        print_mapping(made.to_dict(), state.format_)
        return
    print_rows([
        {"layer": name, **{other: round(float(value), 4) for other, value in zip(made.columns, line, strict=True)}}
        for name, line in zip(made.rows, made.values, strict=True)
    ], state.format_)  # fmt: skip


@probe_command.command("contextual")
@click.argument("collection")
@click.option("--least", type=int, default=5, show_default=True, metavar="N",
              help="In how many texts a word must stand.")
@click.option("--sample", type=int, default=2000, show_default=True, metavar="N", help="Of pairs and texts at most.")
@layer_options
@pass_state
def contextual_command(state: State, /, collection: str, **options: Any) -> None:
    """Print, by layer, how much a word's vector depends on its context; COLLECTION holds words (probe words)."""
    from embedstore.cli.output import print_rows
    from embedstore.probing import contextuality

    layers = chosen_layers(options.pop("layers"))
    with state.collection(collection) as found:
        print_rows([one.to_dict() for one in contextuality(found, layers=layers, **options)], state.format_)


@probe_command.command("report")
@click.argument("collection")
@click.option("--label", "labels", multiple=True, required=True, metavar="FIELD", help="A field to probe. Repeatable.")
@click.option("--out", required=True, metavar="FILE", help="HTML, JSON or Parquet.")
@click.option("--group-by", metavar="FIELD", help="Records that agree in it are never parted.")
@click.option("--control-by", metavar="FIELD", help="Of which each value has one random label in the control task.")
@click.option("--folds", type=int, default=5, show_default=True, metavar="N", help="1 holds one fifth out, once.")
@click.option("--beside", multiple=True, metavar="PREFIX", help="Score other captured layers, too. Repeatable.")
@click.option("--measure", type=click.Choice(_MEASURES), default="cka", show_default=True,
              help="Of the layers' likeness.")
@click.option("--lens", "lens_model", metavar="MODEL", help="Show what each layer of this model would say, too.")
@layer_options
@pass_state
def report_command(state: State, /, collection: str, labels: tuple[str, ...], out: str, **options: Any) -> None:
    """Write everything of COLLECTION's layers as one page, JSON, or a table.

    \b
    embedstore probe report papers --label venue --out papers.html
    """
    from embedstore.names import check_file
    from embedstore.probing import report

    check_file(out, (".html", ".htm", ".json", ".parquet"), "report")
    layers = chosen_layers(options.pop("layers"))
    with state.collection(collection) as found:
        report(found, list(labels), layers=layers, **options).write(out)
    state.note(f"wrote {out}")
