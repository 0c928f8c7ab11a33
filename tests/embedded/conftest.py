import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.embedded.processes import eventually, processes_naming


@pytest.fixture(autouse=True)
async def _nothing_left(tmp_path: Path) -> AsyncIterator[None]:
    yield
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: not processes_naming(tmp_path), within_s=10)
    assert processes_naming(tmp_path) == []
    shutil.rmtree(tmp_path)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
