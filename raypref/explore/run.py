"""`raypref explore`: the gallery of a bundle, and the service that shows it, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raypref import files
from raypref.config import RunConfig
from raypref.explore.gallery import make_gallery

GALLERY = "gallery.json"
SERVICE = "serve.yaml"


def prepare(
    config: RunConfig, bundle: Path, store: str, port: int, texts: bool, against: Path | None = None
) -> Path:
    """Write DIR/explore with the gallery and a Serve configuration; return the configuration.

    Args:
        config: of the run.
        bundle: what to explore.
        store: of the people who look.
        port: where the service listens, on this machine only.
        texts: whether new text is embedded too, as the run says.
        against: an earlier bundle; the page tells what drifted since.

    Raises:
        ConfigError, InputError, MismatchError: see `make_gallery`.
    """
    home = config.dir / "explore"
    files.write_text(home / GALLERY, make_gallery(config, bundle, against).model_dump_json() + "\n")
    args: dict[str, Any] = {
        "bundle": str(bundle),
        "items": str(config.items_dir),
        "store": store,
        "open": True,
        "explore": str(home / GALLERY),
    }
    if texts:
        args["embed"] = config.embed.model_dump(mode="json")
    application = {
        "name": "raypref",
        "route_prefix": "/",
        "import_path": "raypref.serve.app:build",
        "args": args,
        "deployments": [{"name": "Scorer", "ray_actor_options": {"num_cpus": 0.5}}],
    }
    raw = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    files.write_text(home / SERVICE, yaml.safe_dump(raw, sort_keys=False))
    return home / SERVICE
