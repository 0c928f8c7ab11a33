"""What the README shows is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs_as_it_stands(tmp_path: Path) -> None:
    code, printed = re.search(r"```python\n(.*?)```\n```\n(.*?)```", README.read_text("utf-8"), re.DOTALL).groups()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    env = {**plain, "XIMLER_DATA_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-m", "ximler", "db", "init"], env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(printed), "after what structlog, left as it is, logs to the same place"
