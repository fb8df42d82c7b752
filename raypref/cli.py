"""The command line; heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import functools
import json
import os
import select
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
EXIT_CLOSED = 141
"""As of a program that is killed by SIGPIPE: whoever read the output has gone."""

NAME_WIDTH = 20
TEXT_WIDTH = 110
NO_BREAK = "\u00a0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for what a user can put right, 130 when interrupted, 141 when unread."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED
    except RayprefError as error:
        print(f"raypref: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("raypref: interrupted; nothing half-written was left.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _unread() -> bool:
    """Return whether it is the output that is a broken pipe."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


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
        _add_run(sub)
        return sub

    importing = command(
        "import", _import, "read a published dataset, or any TRL dataset with users, as input"
    )
    importing.add_argument("dataset", nargs="?", metavar="DATASET", help="default: list what there is")
    importing.add_argument(
        "--from", dest="place", metavar="PATH", help="file or folder as published, or hf:OWNER/NAME"
    )
    importing.add_argument("-o", "--output", type=Path, metavar="DIR", help="where to write")
    importing.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a=b", help="change how it is read"
    )
    configured("embed", _embed, "turn the texts of the input into the items table")
    configured("prepare", _prepare, "split the comparisons and lay them out by user")
    configured("train", _train, "fit the method's shared weights and write a bundle")
    evaluate = configured("eval", _eval, "measure bundles on held-out comparisons and write the report")
    evaluate.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="folder or hf://OWNER/NAME; default: the run's own"
    )
    describe = configured("describe", _describe, "say what the bases of a bundle reward, and in whom")
    describe.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="folder or hf://OWNER/NAME; default: the run's own"
    )
    describe.add_argument(
        "--top", type=int, default=3, metavar="N", help="items at either end, and contrasts (default 3)"
    )
    describe.add_argument(
        "--against", metavar="BUNDLE", help="say too what has drifted since this earlier bundle"
    )
    describe.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it as JSON too")
    bestofn = configured("bestofn", _bestofn, "let bundles choose among responses, judged by what users want")
    bestofn.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folder or hf://OWNER/NAME")
    bestofn.add_argument("--baseline", metavar="NAME", help="whose pick to win over (default bt)")
    configured("sweep", _sweep, "try many settings side by side; write the best run, a table and figures")
    configured("adapt", _adapt, "infer every user's vector with the run's bundle, and write them all")
    configured("score", _score, "score candidates for every user whose vector `adapt` wrote")
    configured("plant", _plant, "write a planted population, whose truth is known, as items and tables")
    command("methods", _methods, "list the methods, where they are published, and their settings")
    check = configured(
        "check", _check, "check a run and whatever of it exists, or manifests and Serve configurations"
    )
    check.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="such as k8s/ serve_configs/; - reads what is built",
    )
    check.add_argument(
        "--crds",
        type=Path,
        default=os.environ.get("RAYPREF_CRDS") or None,
        metavar="FOLDER",
        help="KubeRay's custom resource definitions, to hold fields against (default: $RAYPREF_CRDS)",
    )
    demo = command("demo", _demo, "run the whole job on text that comes with raypref")
    demo.add_argument("--dir", type=Path, default=Path("demo-run"), help="where to write (default demo-run)")
    explore = configured("explore", _explore, "show a page where people see what a bundle believes of them")
    explore.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="folder or hf://OWNER/NAME; default: the run's own"
    )
    explore.add_argument(
        "--against", metavar="BUNDLE", help="show too what has drifted since this earlier bundle"
    )
    explore.add_argument(
        "--store", default="memory:", metavar="URL", help="of those who look; default: forgotten at the end"
    )
    explore.add_argument("--port", type=int, default=8000, help="on this machine only (default 8000)")
    explore.add_argument("--texts", action="store_true", help="score new texts too: starts an embedder")
    _add_hub(command)
    _add_serving(command)
    _add_k8s(command)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that say a run."""
    parser.add_argument("-c", "--config", type=Path, metavar="YAML", help="the run's configuration")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change one value"
    )


def _add_hub(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add what brings bundles to the Hugging Face hub, and back."""
    push = command("push", _push, "upload a bundle to the Hugging Face hub, without its users")
    push.add_argument("bundle", type=Path, metavar="BUNDLE")
    push.add_argument("repository", metavar="OWNER/NAME", help="made, private, where there is none")
    push.add_argument("--public", action="store_true", help="make the repository a public one")
    push.add_argument("--with-users", action="store_true", help="upload the seen users' vectors too")
    push.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    push.add_argument("--report", type=Path, metavar="DIR", help="of `raypref eval`, for the card's results")
    push.add_argument("--revision", metavar="BRANCH", help="default: main")
    pull = command("pull", _pull, "fetch a bundle from the Hugging Face hub and verify it")
    pull.add_argument("repository", metavar="OWNER/NAME[@REVISION]")
    pull.add_argument("-o", "--output", type=Path, metavar="DIR", default=Path("bundle"))


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
            action.add_argument("bundle", metavar="BUNDLE", help="folder or hf://OWNER/NAME")
            action.add_argument("--items", type=Path, help="items table that comparisons name rows of")
            action.add_argument("--half-life-days", type=float, help="as the service has it")


def _add_k8s(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add what prepares runs for a cluster of Kubernetes."""
    k8s = command("k8s", _k8s, "write the manifests of a run")
    actions = k8s.add_subparsers(dest="action", required=True, metavar="ACTION")
    render = actions.add_parser(
        "render",
        help="write the RayJob of a run, for `kubectl create -f -`",
        description="Write the RayJob of a run and the ConfigMap that it reads the run from, checked as by "
        "`raypref check`. Paths of the run are those in the image: relative to /app, below runs/.",
    )
    render.add_argument("command", metavar="COMMAND", help="such as train")
    _add_run(render)
    render.add_argument(
        "--from",
        dest="folder",
        type=Path,
        default=Path("k8s/base/jobs"),
        metavar="FOLDER",
        help="kustomization of jobs, such as k8s/overlays/gpu/jobs (default k8s/base/jobs)",
    )
    render.add_argument("--name", help="of the job (default raypref-COMMAND); its ConfigMap is NAME-run")
    render.add_argument("--image", help="of all of Ray's containers")
    render.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")


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


def _k8s(arguments: argparse.Namespace) -> None:
    from raypref.files import write_text
    from raypref.k8s.render import dump, render

    if arguments.config is None and arguments.overrides:
        raise ConfigError("--set changes a value of a run; name the run with -c run.yaml.")
    run = None if arguments.config is None else _raw(arguments)
    objects = render(
        arguments.command,
        run,
        str(arguments.config),
        arguments.folder,
        arguments.name,
        arguments.image,
    )
    if arguments.output is None:
        print(dump(objects), end="")
        return
    try:
        write_text(arguments.output, dump(objects))
    except OSError as error:
        raise ConfigError(f"{arguments.output}: cannot be written ({error}).") from error


def _raw(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the user says of a run, and no default."""
    from raypref.config_file import apply_override, read_mapping

    raw = read_mapping(arguments.config)
    for override in arguments.overrides:
        apply_override(raw, override)
    return raw


def _config(arguments: argparse.Namespace) -> RunConfig:
    from raypref.config_file import load_config

    return load_config(arguments.config, arguments.overrides)


def _import(arguments: argparse.Namespace) -> None:
    from raypref.data.importing import dataset_of, import_dataset, table
    from raypref.data.published import DATASETS

    if arguments.dataset is None:
        for kind in DATASETS:
            _print_aligned(f"{kind.name}:", f"{kind.title[0].upper()}{kind.title[1:]}.")
            _print_aligned("", f"{kind.citation}. Licence: {kind.licence}.")
            _print_aligned("  --from", f"{kind.files}.")
            for name, field in kind.model_json_schema().get("properties", {}).items():
                default = f"default {_word(field['default'])}"
                _print_aligned(f"  {name}", field["description"], _kind(field), default)
            print()
        return
    dataset = dataset_of(arguments.dataset, arguments.settings)
    if arguments.place is None or arguments.output is None:
        raise ConfigError(
            f"import {dataset.name}: --from names its files ({dataset.files}), -o where to write."
        )
    print(table(import_dataset(dataset, arguments.place, arguments.output)))
    print(f"{arguments.output}: next, raypref embed --set input.path={arguments.output}, then prepare")


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
    config = _config(arguments)
    if config.train.mode == "federated":
        try:
            from raypref.federated.run import run
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.mode: {error.name} is not installed; pip install 'raypref[federated]'."
            ) from error
    else:
        from raypref.train.trainer import run
    info = run(config)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(info.metrics.items()))
    print(f"{config.bundle_dir}: {info.method.type}, {info.steps} steps{', ' + figures if figures else ''}")


def _sweep(arguments: argparse.Namespace) -> None:
    from raypref.tune.run import sweep

    home, best = sweep(_raw(arguments), str(arguments.config or "configuration"))
    print((home / "trials.txt").read_text(), end="")
    print(f"best: trial {best.number}; raypref train -c {home / 'best.yaml'}")
    print(f"figures: {home / 'sweep.html'}")


def _eval(arguments: argparse.Namespace) -> None:
    from raypref.evaluate.run import summary
    from raypref.hub import resolve
    from raypref.population.evaluate import evaluate_population

    config = _config(arguments)
    bundles = [resolve(bundle) for bundle in arguments.bundles]
    print(summary(evaluate_population(config, bundles or [config.bundle_dir])))
    print(f"report: {config.report_dir / 'report.html'}")


def _describe(arguments: argparse.Namespace) -> None:
    from raypref.describe.run import describe
    from raypref.describe.table import text_table
    from raypref.files import write_text
    from raypref.hub import resolve

    config = _config(arguments)
    if arguments.top < 1:
        raise ConfigError(f"--top {arguments.top}: name at least 1.")
    bundle = config.bundle_dir if arguments.bundle is None else resolve(arguments.bundle)
    against = None if arguments.against is None else resolve(arguments.against)
    found = describe(config, bundle, arguments.top, against)
    print(text_table(found))
    if arguments.output is None:
        return
    try:
        write_text(arguments.output, found.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{arguments.output}: cannot be written ({error}).") from error


def _bestofn(arguments: argparse.Namespace) -> None:
    from raypref.bestofn.run import RESULT, best_of_n, table
    from raypref.hub import resolve

    config = _config(arguments)
    bundles = [resolve(bundle) for bundle in arguments.bundles]
    print(table(best_of_n(config, bundles, arguments.baseline)))
    print(f"figures: {config.dir / 'bestofn' / RESULT}")


def _adapt(arguments: argparse.Namespace) -> None:
    from raypref.population.adapt import adapt

    config = _config(arguments)
    print(f"{config.users_dir}: {adapt(config)}")


def _score(arguments: argparse.Namespace) -> None:
    from raypref.population.score import score

    config = _config(arguments)
    print(f"{config.scores_dir}: {score(config)}")


def _explore(arguments: argparse.Namespace) -> None:
    from raypref.serve.launch import set_throughput

    # Ray reads its environment when it is imported; Serve's own proxy listens on this machine alone.
    set_throughput(False)
    from raypref.explore.run import prepare
    from raypref.hub import resolve
    from raypref.serve.launch import serve_forever

    config = _config(arguments)
    bundle = config.bundle_dir if arguments.bundle is None else resolve(arguments.bundle)
    against = None if arguments.against is None else resolve(arguments.against)
    service = prepare(config, bundle, arguments.store, arguments.port, arguments.texts, against)
    print(f"{service}: the page is http://127.0.0.1:{arguments.port}/explore", flush=True)
    serve_forever(service, [], None, functools.partial(print, flush=True))


def _push(arguments: argparse.Namespace) -> None:
    from raypref.hub import push, results_of

    results = () if arguments.report is None else results_of(arguments.report, _bundle_name(arguments.bundle))
    commit = push(
        arguments.bundle,
        arguments.repository,
        private=not arguments.public,
        with_users=arguments.with_users,
        licence=arguments.license,
        results=results,
        revision=arguments.revision,
    )
    whose = "with" if arguments.with_users else "without"
    print(f"{arguments.repository}@{commit}: pushed {whose} the users that it was trained on")


def _bundle_name(directory: Path) -> str:
    """Return what a report calls a bundle."""
    from raypref.checkpoint import name_of, read_info

    return name_of(directory, read_info(directory))


def _pull(arguments: argparse.Namespace) -> None:
    from raypref.hub import pull

    commit = pull(arguments.repository, arguments.output)
    print(f"{arguments.output}: {arguments.repository.partition('@')[0]}@{commit}, verified")


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
    has_run = arguments.config is not None or arguments.overrides
    if not arguments.paths and not has_run:
        raise ConfigError("check: name a run's configuration with -c run.yaml, or manifests (k8s/).")
    if arguments.paths:
        _check_manifests(arguments.paths, arguments.crds)
    if has_run:
        _check_run(_config(arguments))


def _check_run(config: RunConfig) -> None:
    from raypref.checkpoint import Bundle
    from raypref.data.items import ItemTable
    from raypref.data.tables import Tables
    from raypref.schema import require_embedder

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


def _check_manifests(paths: Sequence[Path], crds: Path | None) -> None:
    from raypref.k8s.check import check
    from raypref.k8s.schema import native_schemas, read_crds

    if crds is None:
        print("KubeRay's fields are not held against its schemas: --crds names its definitions.")
    if not native_schemas():
        print("Kubernetes' fields are not held against its schemas: pip install kubernetes-validate.")
    checked = check(paths, {} if crds is None else read_crds(crds))
    for finding in checked.findings:
        print(finding)
    bad = {finding.where for finding in checked.findings}
    for where, count in checked.objects.items():
        if where not in bad:
            print(f"{where}: ok, {count} {'object' if count == 1 else 'objects'}")
    if checked.findings:
        many = [
            f"{len(found)} {word}{'s' if len(found) > 1 else ''}"
            for found, word in ((checked.findings, "finding"), (bad, "place"))
        ]
        raise ConfigError(f"{' in '.join(many)}; nothing was applied.")


def _demo(arguments: argparse.Namespace) -> None:
    from raypref.demo.run import demo

    demo(arguments.dir)
