from __future__ import annotations

from typing import Any

import pytest
from compared import scored


@pytest.fixture(scope="session")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scored(tmp_path_factory.mktemp("compared"))
