"""What the commands `raypref serve`, `keys` and `users` do."""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial

from tqdm import tqdm

from raypref.hub import resolve
from raypref.serve.keys import create_key, revoke_key
from raypref.serve.launch import serve_forever
from raypref.serve.stores.base import Store


def serve(arguments: Namespace) -> None:
    """Serve until stopped."""
    serve_forever(arguments.config, arguments.overrides, arguments.metrics_port, partial(print, flush=True))


def keys(arguments: Namespace) -> None:
    """Make or revoke an API key."""
    if arguments.action == "create":
        print(create_key(arguments.file, arguments.tenant))
        print(f"shown once; {arguments.file} keeps its digest only.", file=sys.stderr)
    else:
        revoke_key(arguments.file, arguments.id)
        print(f"{arguments.id} is revoked.")


def users(arguments: Namespace) -> None:
    """Move, refresh or compact the users of a store."""
    from raypref.serve.stores import open_store

    store = open_store(arguments.store)
    try:
        if arguments.action == "compact":
            store.compact()
            print(f"{arguments.store}: nothing erased is left in its files.")
        elif arguments.action == "refresh":
            _refresh(arguments, store)
        else:
            from raypref.serve.transfer import export_store, import_store

            if arguments.action == "export":
                export_store(store, arguments.file)
            else:
                import_store(arguments.file, store)
            print(f"{arguments.action}ed {arguments.file}")
    finally:
        store.close()


def _refresh(arguments: Namespace, store: Store) -> None:
    from raypref.serve.refresh import refresh

    bundle = resolve(arguments.bundle)
    with tqdm(unit=" users", disable=not sys.stderr.isatty()) as bar:
        count, failed = refresh(bundle, arguments.items, store, arguments.half_life_days, bar.update)
    print(f"{arguments.bundle}: {count} users inferred, {len(failed)} could not be")
    for key, problem in failed[:10]:
        print(f"  {key.tenant}: {problem}")
