"""Names of references, which are folders of the cache on any operating system."""

from __future__ import annotations

import re

from mrpo_pipeline.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Device names on Windows.
_RESERVED = {"aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def check_reference_name(name: str) -> str:
    """The name. Raises UserError where it is not a valid folder name."""
    if not _NAME.fullmatch(name) or name.endswith(".") or name.partition(".")[0].lower() in _RESERVED:
        raise UserError(
            f"The reference name {name[:80]!r} is not a valid folder name: expected 1 to 64 ASCII letters, digits, `.`, `_` or `-`, "
            "starting with a letter or digit, not ending with `.`, and not a device name (aux, con, nul, …). Rename it under "
            "`references:`."
        )
    return name
