"""Measure bundles on the run's held-out comparisons, and write one report of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raypref.checkpoint import Bundle, library_versions, name_of
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import ConfigError, MismatchError
from raypref.evaluate.landscape import PreferenceMap, map_users
from raypref.evaluate.protocol import SETTINGS, Spread, evaluate
from raypref.evaluate.report import ReportMeta, write_report
from raypref.evaluate.result import Evaluation
from raypref.schema import require_embedder


def evaluate_bundles(
    config: RunConfig, directories: Sequence[Path], spread: Spread = map
) -> dict[str, Evaluation]:
    """Evaluate bundles, write the report, and return what was measured by bundle name.

    A bundle's name is its folder's, or the method's where the folder is called bundle. `spread` says where
    users are judged; see `evaluate`.

    Raises:
        ConfigError: two bundles have one name.
        MismatchError: a bundle belongs to another embedder or was trained on other comparisons.
    """
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    bundles: dict[str, Bundle] = {}
    for directory in directories:
        bundle = Bundle.load(directory)
        require_embedder(items.metadata.embedder, bundle.info.embedder, config.items_dir)
        if bundle.info.data_fingerprint != tables.metadata.fingerprint:
            raise MismatchError(
                f"{directory}: trained on other comparisons than {config.tables_dir} holds, so what is held "
                "out here may have been in its training; train it on these tables."
            )
        name = name_of(directory, bundle.info)
        if name in bundles:
            raise ConfigError(f"{directory}: a second bundle called {name}; rename its folder.")
        bundles[name] = bundle
    found: dict[str, Evaluation] = {}
    maps: dict[str, PreferenceMap | None] = {}
    for name, bundle in bundles.items():
        read = items.with_prompts(bundle.info.method.needs_prompts)
        found[name] = evaluate(bundle.model, read, tables, config.evaluate, spread)
        maps[name] = map_users(bundle.model, read, tables)
    counts = tables.metadata
    meta = ReportMeta(
        title=f"raypref: {', '.join(found)}",
        data=f"{counts.seen_users} seen and {counts.unseen_users} unseen users, {counts.items} items, "
        f"{sum(counts.comparisons.values())} comparisons.",
        baseline=config.evaluate.baseline if config.evaluate.baseline in found else None,
        versions=library_versions(),
    )
    write_report(config.report_dir, found, maps, meta)
    return found


def summary(found: Mapping[str, Evaluation]) -> str:
    """Return a text table: accuracy averaged per user, by method and shots, warm and cold items."""
    lines: list[str] = []
    for setting in SETTINGS:
        keys = sorted(
            {
                cell.shots
                for evaluation in found.values()
                for cell in evaluation.cells
                if cell.setting == setting and cell.shots is not None
            }
        )
        if not keys:
            continue
        lines.append(f"{setting} items, accuracy per user".ljust(32) + "seen".rjust(7) + _shots(keys))
        for name, evaluation in found.items():
            cells = [evaluation.cell("seen", setting, None)]
            cells += [evaluation.cell("unseen", setting, shots) for shots in keys]
            figures = "".join(f"{cell.accuracy_per_user.mean:7.3f}" if cell else "      -" for cell in cells)
            lines.append(f"  {name}".ljust(32) + figures)
    return "\n".join(lines)


def _shots(keys: Sequence[int]) -> str:
    return "".join(f"{shots:>7}" for shots in keys) + " shots"
