"""The command line; heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref import __version__
from raypref.errors import ConfigError, RayprefError

if TYPE_CHECKING:
    from raypref.config import RunConfig

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

NAME_WIDTH = 20
TEXT_WIDTH = 110
NO_BREAK = "\u00a0"


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
    configured("sweep", _sweep, "try many settings side by side; write the best run, a table and figures")
    configured("adapt", _adapt, "infer every user's vector with the run's bundle, and write them all")
    configured("score", _score, "score candidates for every user whose vector `adapt` wrote")
    configured("plant", _plant, "write a planted population, whose truth is known, as items and tables")
    command("methods", _methods, "list the methods, where they are published, and their settings")
    configured("check", _check, "check a configuration and whatever of its run exists")
    demo = command("demo", _demo, "run the whole job on text that comes with raypref")
    demo.add_argument("--dir", type=Path, default=Path("demo-run"), help="where to write (default demo-run)")
    _add_serving(command)
    return parser


def _add_serving(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the service."""
    serve = command("serve", _serve, "run the service of a Serve configuration, until stopped")
    serve.add_argument("config", type=Path, metavar="YAML", help="such as serve_configs/local.yaml")
    serve.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change one of `args`"
    )
    serve.add_argument(
        "--own-proxy",
        dest="throughput",
        action="store_false",
        help="Serve's own proxy instead of HAProxy: slower, and listens only where http_options.host says",
    )
    serve.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="where Prometheus finds figures; default: any free one",
    )
    keys = command("keys", _keys, "make or revoke API keys of the service")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="add a key to a file and print it, once")
    create.add_argument("file", type=Path, metavar="FILE")
    create.add_argument("--tenant", required=True, help="whose users the key opens")
    revoke = actions.add_parser("revoke", help="remove a key; a running service notices")
    revoke.add_argument("file", type=Path, metavar="FILE")
    revoke.add_argument("id", help="the middle part of the key")
    users = command("users", _users, "move, refresh or compact the users of a store")
    actions = users.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("export", "write all users to a file"),
        ("import", "read users from such a file into another store"),
        ("refresh", "infer all users anew, for a new bundle"),
        ("compact", "rewrite the store's files without what was erased"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "--store", required=True, metavar="URL", help="such as sqlite:///raypref-users.db"
        )
        if name in ("export", "import"):
            action.add_argument("file", type=Path, metavar="FILE")
        if name == "refresh":
            action.add_argument("bundle", type=Path, metavar="BUNDLE")
            action.add_argument("--items", type=Path, help="items table that comparisons name rows of")
            action.add_argument("--half-life-days", type=float, help="as the service has it")


def _serve(arguments: argparse.Namespace) -> None:
    from raypref.serve.launch import set_throughput

    # Ray reads its environment when it is imported.
    set_throughput(arguments.throughput)
    from raypref.serve.commands import serve

    serve(arguments)


def _keys(arguments: argparse.Namespace) -> None:
    from raypref.serve.commands import keys

    keys(arguments)


def _users(arguments: argparse.Namespace) -> None:
    from raypref.serve.commands import users

    users(arguments)


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


def _sweep(arguments: argparse.Namespace) -> None:
    from raypref.config_file import apply_override, read_mapping
    from raypref.tune.run import sweep

    raw = read_mapping(arguments.config)
    for override in arguments.overrides:
        apply_override(raw, override)
    home, best = sweep(raw, str(arguments.config or "configuration"))
    print((home / "trials.txt").read_text(), end="")
    print(f"best: trial {best.number}; raypref train -c {home / 'best.yaml'}")
    print(f"figures: {home / 'sweep.html'}")


def _eval(arguments: argparse.Namespace) -> None:
    from raypref.evaluate.run import summary
    from raypref.population.evaluate import evaluate_population

    config = _config(arguments)
    print(summary(evaluate_population(config, arguments.bundles or [config.bundle_dir])))
    print(f"report: {config.report_dir / 'report.html'}")


def _adapt(arguments: argparse.Namespace) -> None:
    from raypref.population.adapt import adapt

    config = _config(arguments)
    print(f"{config.users_dir}: {adapt(config)}")


def _score(arguments: argparse.Namespace) -> None:
    from raypref.population.score import score

    config = _config(arguments)
    print(f"{config.scores_dir}: {score(config)}")


def _methods(arguments: argparse.Namespace) -> None:
    from raypref.methods import METHODS
    from raypref.methods.base import Recipe

    for method in METHODS:
        fields = method.model_json_schema()["properties"]
        recipe = ", ".join(
            f"{name} {_word(value)}" for name, value in fields.pop("recipe")["default"].items()
        )
        _print_aligned(f"{fields.pop('type')['const']}:", (method.__doc__ or "").splitlines()[0])
        _print_aligned("", f"{method.citation}.")
        for name, field in fields.items():
            default = f"default {_word(field['default'])}"
            _print_aligned(f"  {name}", field.get("description", ""), _kind(field), default)
        _print_aligned("  recipe", f"{recipe}.")
        print()
    _print_aligned("recipe:", (Recipe.__doc__ or "").splitlines()[0])
    for name, field in Recipe.model_json_schema()["properties"].items():
        _print_aligned(f"  {name}", field["description"], _kind(field))
    print("\nChange a setting with --set method.NAME=VALUE or --set method.recipe.NAME=VALUE.")


def _print_aligned(name: str, text: str, *facts: str) -> None:
    width = max(2 * NAME_WIDTH, min(shutil.get_terminal_size().columns, TEXT_WIDTH))
    # No-break spaces, until lines are broken: `0 ≤ float` is one word.
    text += f" [{'; '.join(fact.replace(' ', NO_BREAK) for fact in facts)}]" if facts else ""
    lines = textwrap.fill(
        text.strip(),
        width,
        initial_indent=f"{name:<{NAME_WIDTH}}",
        subsequent_indent=" " * NAME_WIDTH,
        break_on_hyphens=False,
    )
    print(lines.replace(NO_BREAK, " "))


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema in words, such as `0 ≤ float < 1`."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "prefixItems" in schema:
        return f"[{', '.join(_kind(part) for part in schema['prefixItems'])}]"
    kind: str = schema["type"]
    kind = {"integer": "int", "number": "float", "boolean": "bool"}.get(kind, kind)
    for bound, sign in (("minimum", "≤"), ("exclusiveMinimum", "<")):
        kind = f"{schema[bound]} {sign} {kind}" if bound in schema else kind
    for bound, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")):
        kind = f"{kind} {sign} {schema[bound]}" if bound in schema else kind
    return kind


def _word(value: Any) -> str:
    """Return a default as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


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
