"""Names of references: each names a folder of the cache, on whatever system that is read."""

from __future__ import annotations

import re

from mrpo_pipeline.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What Windows, and a share that it reads, takes for a device.
_RESERVED = {"aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def check_reference_name(name: str) -> str:
    """The name, where a folder of the cache may bear it.

    Raises:
        UserError: where it may not.
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or name.partition(".")[0].lower() in _RESERVED:
        raise UserError(
            f"The reference name {name[:80]!r} cannot be used: expected 1 to 64 ASCII letters, digits, `.`, `_` or `-`, the "
            "first a letter or digit, the last no `.`, and no device's name (aux, con, nul, …), because it names a folder of the "
            "cache, on whatever system that is read. Rename it under `references:`."
        )
    return name
