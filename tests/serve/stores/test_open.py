from __future__ import annotations

import sys

import pytest

from raypref.errors import ConfigError
from raypref.serve.stores import open_store


@pytest.mark.parametrize(
    "url",
    ["", "users.db", "memory", "mysql://host/db", "sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x.db"],
)
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///"):
        open_store(url)


@pytest.mark.parametrize(("url", "package"), [("postgresql://h/d", "psycopg"), ("redis://h", "redis")])
def test_an_extra_that_is_missing_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("raypref.serve.stores.")]:
        if name.removeprefix("raypref.serve.stores.").startswith(("postgres", "redis")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'raypref\[(postgres|redis)\]'"):
        open_store(url)
