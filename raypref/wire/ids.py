"""Names that clients choose: users, events, tenants."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

ID_PATTERN = r"^[A-Za-z0-9_~@:+=-][A-Za-z0-9._~@:+=-]{0,127}$"
"""Up to 128 letters, digits and `. _ ~ @ : + = -`, not beginning with a dot: safe in paths, keys and logs."""

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN, strict=True)]
