"""Check that a folder holds a trained adapter, without heavy imports."""

from __future__ import annotations

from pathlib import Path

from mrpo_pipeline.errors import UserError

CONFIG = "adapter_config.json"


def require_adapter(folder: Path) -> Path:
    """The folder, if it holds an adapter.

    Raises:
        UserError: if it holds none; names the adapters in its subfolders.
    """
    if (folder / CONFIG).is_file():
        return folder
    inner = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
    several = f" It holds adapters in {', '.join(inner[:5])}: one is used at a time." if inner else ""
    raise UserError(
        f"{folder} holds no adapter: expected a folder with {CONFIG}, as `mrpo train` leaves it in its --output-dir.{several} "
        "Train first, or give that folder."
    )
