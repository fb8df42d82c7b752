"""Records of published files: every column, row by row, from disk or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raypref.data.formats import READERS, read_raw, readable
from raypref.errors import InputError

HUB = "hf:"
"""Begins the name of a dataset on the hub."""

BATCH_ROWS = 4096

Record = dict[str, Any]


class Records:
    """What stands where `--from` says: a file, a folder of them, a dataset on disk, or hf:OWNER/NAME."""

    def __init__(self, place: str) -> None:
        """Take the place; nothing is read yet."""
        self.place = place

    def read(
        self, *columns: str, part: str | None = None, split: str | None = None, folder: str | None = None
    ) -> Iterator[Record]:
        """Yield the records, each with all of its columns.

        Args:
            columns: that every file must have.
            part: which of several kinds of files, by how their names begin; the hub's configuration.
            split: which of several splits: folders, or beginnings of file names; all, where there is none.
            folder: which folder of the hub's repository; default what the repository says.

        Raises:
            InputError: nothing is there, it cannot be read, or a column is missing.
        """
        if self.place.startswith(HUB):
            yield from self._hub(columns, part, split, folder)
        else:
            yield from self._disk(columns, part, split)

    def files(self) -> list[Path]:
        """Return the files on disk; none of a dataset of the hub.

        Raises:
            InputError: there is none.
        """
        if self.place.startswith(HUB):
            return []
        _require_there(Path(self.place))
        return readable(Path(self.place))

    def _disk(self, columns: Sequence[str], part: str | None, split: str | None) -> Iterator[Record]:
        path = Path(self.place)
        _require_there(path)
        places = [path]
        if part is not None and path.is_dir():
            places = [file for file in readable(path) if stem(file).startswith(part)]
            if not places:
                raise InputError(f"{path}: no file named {part}* here ({', '.join(READERS)}).")
        if split is not None and (path / split).is_dir():
            places = [path / split]
        elif split is not None and path.is_dir():
            places = [file for file in readable(path) if stem(file).startswith(split)] or places
        for place in places:
            for where, raw in read_raw(place, BATCH_ROWS, all_columns=True):
                _require(columns, list(raw), where)
                names = list(raw)
                for values in zip(*raw.values(), strict=True):
                    yield dict(zip(names, values, strict=True))

    def _hub(
        self, columns: Sequence[str], part: str | None, split: str | None, folder: str | None
    ) -> Iterator[Record]:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"{self.place}: the hub is read by `datasets`; pip install 'raypref[hf]'."
            ) from error
        try:
            found = datasets.load_dataset(self.place.removeprefix(HUB), part, data_dir=folder)
        except Exception as error:  # the hub's own, of many kinds
            raise InputError(
                f"{self.place}: cannot be loaded from the hub ({error}); download it and name the files."
            ) from error
        for records in [found[split]] if split in found else found.values():
            _require(columns, records.column_names, self.place)
            for record in records:
                yield dict(record)


def stem(file: Path) -> str:
    """Return a file's name without its ending."""
    suffix = next(suffix for suffix in READERS if file.name.lower().endswith(suffix))
    return file.name[: -len(suffix)]


def _require_there(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; name the downloaded files with --from.")


def _require(columns: Sequence[str], have: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in have]
    if missing:
        raise InputError(
            f"{where}: has no column {', '.join(missing)}; it has {', '.join(have) or 'none'}. "
            "Is it this dataset?"
        )
