"""The hub's API on loopback (see upload_hub.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from upload_hub import HubStub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    import huggingface_hub.constants
    from huggingface_hub import HfFileSystem

    stub = HubStub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stub.url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    HfFileSystem.clear_instance_cache()
    yield stub
    stub.close()
    HfFileSystem.clear_instance_cache()
