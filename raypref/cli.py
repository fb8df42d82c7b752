"""The command line; heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raypref import __version__
from raypref.errors import ConfigError, RayprefError

if TYPE_CHECKING:
    from raypref.config import RunConfig

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for what a user can put right, or 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except RayprefError as error:
        print(f"raypref: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("raypref: interrupted; nothing half-written was left.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raypref",
        description="Personal reward models, at population scale, on Ray.",
        epilog="One YAML describes a run; --set a.b=c changes a value. `raypref COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"raypref {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    def configured(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("-c", "--config", type=Path, metavar="YAML", help="the run's configuration")
        sub.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change one value"
        )
        return sub

    configured("embed", _embed, "turn the texts of the input into the items table")
    configured("prepare", _prepare, "split the comparisons and lay them out by user")
    configured("train", _train, "fit the method's shared weights and write a bundle")
    evaluate = configured("eval", _eval, "measure bundles on held-out comparisons and write the report")
    evaluate.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="default: the run's own")
    configured("plant", _plant, "write a planted population, whose truth is known, as items and tables")
    command("methods", _methods, "list the methods and their settings")
    configured("check", _check, "check a configuration and whatever of its run exists")
    demo = command("demo", _demo, "run the whole job on text that comes with raypref")
    demo.add_argument("--dir", type=Path, default=Path("demo-run"), help="where to write (default demo-run)")
    return parser


def _config(arguments: argparse.Namespace) -> RunConfig:
    from raypref.config_file import load_config

    return load_config(arguments.config, arguments.overrides)


def _embed(arguments: argparse.Namespace) -> None:
    from raypref.embed.pipeline import embed

    config = _config(arguments)
    metadata = embed(config)
    print(f"{config.items_dir}: {metadata.count} items, D = {metadata.embedder.dim}")


def _prepare(arguments: argparse.Namespace) -> None:
    from raypref.data.prepare import prepare

    config = _config(arguments)
    metadata = prepare(config)
    print(f"{config.tables_dir}: {metadata.seen_users} seen and {metadata.unseen_users} unseen users")
    for name, count in sorted(metadata.comparisons.items()):
        print(f"  {name}: {count} comparisons")
    for kind, bad in sorted(metadata.bad_rows.items()):
        print(f"  left out, {kind}: {bad.count}, first at row {bad.first_row}")


def _plant(arguments: argparse.Namespace) -> None:
    from raypref.data.planting import write_planted

    config = _config(arguments)
    metadata = write_planted(config.planted, config.items_dir, config.tables_dir)
    print(f"{config.tables_dir}: {metadata.seen_users} seen and {metadata.unseen_users} unseen users")


def _train(arguments: argparse.Namespace) -> None:
    from raypref.train.trainer import run

    config = _config(arguments)
    info = run(config)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(info.metrics.items()))
    print(f"{config.bundle_dir}: {info.method.type}, {info.steps} steps{', ' + figures if figures else ''}")


def _eval(arguments: argparse.Namespace) -> None:
    from raypref.evaluate.run import evaluate_bundles, summary

    config = _config(arguments)
    print(summary(evaluate_bundles(config, arguments.bundles or [config.bundle_dir])))
    print(f"report: {config.report_dir / 'report.html'}")


def _methods(arguments: argparse.Namespace) -> None:
    from raypref.methods import METHODS

    for method in METHODS:
        fields = method.model_fields
        print(f"{fields['type'].default}: {(method.__doc__ or '').splitlines()[0]}")
        for name, field in fields.items():
            if name == "recipe":
                recipe = field.get_default(call_default_factory=True)
                print(f"  recipe: {json.dumps(recipe.model_dump())}")
            elif name != "type":
                print(f"  {name} = {field.default!r}: {field.description}")


def _check(arguments: argparse.Namespace) -> None:
    from raypref.checkpoint import Bundle
    from raypref.data.items import ItemTable
    from raypref.data.tables import Tables
    from raypref.schema import require_embedder

    if arguments.config is None and not arguments.overrides:
        raise ConfigError("check: name a configuration with -c run.yaml.")
    config = _config(arguments)
    print(json.dumps(config.model_dump(mode="json"), indent=2))
    items = tables = None
    if config.items_dir.exists():
        items = ItemTable.open(config.items_dir)
        print(f"{config.items_dir}: ok, {len(items)} items")
    if config.tables_dir.exists():
        tables = Tables.open(config.tables_dir)
        print(f"{config.tables_dir}: ok, {tables.metadata.seen_users} seen users")
        if items is not None:
            tables.require_items(items)
    if config.bundle_dir.exists():
        bundle = Bundle.load(config.bundle_dir)
        print(f"{config.bundle_dir}: ok, {bundle.info.method.type}")
        if items is not None:
            require_embedder(items.metadata.embedder, bundle.info.embedder, config.items_dir)


def _demo(arguments: argparse.Namespace) -> None:
    from raypref.demo.run import demo

    demo(arguments.dir)
