"""Topic `cli`: how long a person waits for `ximler --help`, and a program for `import ximler`."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

from bench.contest import Contestant, compete
from bench.report import Figure, Table, ms, spread
from bench.setup import Setup

__all__ = ["run"]

BARE = "python -c pass"
HELP = "ximler --help"
PROCESS = "python -c 'import ximler'"
IMPORT = "import ximler, timed inside"
DATABASE = "import ximler.database, timed inside"
APP = "import ximler.app, timed inside"


async def run(setup: Setup) -> list[Table]:
    ximler = Path(sys.executable).with_name("ximler")
    commands = {
        BARE: [sys.executable, "-c", "pass"],
        HELP: [str(ximler), "--help"],
        PROCESS: [sys.executable, "-c", "import ximler"],
    }
    contestants = [Contestant(name, partial(_process, command)) for name, command in commands.items()]
    contestants += [
        Contestant(name, partial(_inside, module))
        for name, module in ((IMPORT, "ximler"), (DATABASE, "ximler.database"), (APP, "ximler.app"))
    ]
    samples = await compete(contestants, max(15, setup.rounds(25)))
    medians = {name: median(taken) * 1e3 for name, taken in samples.items()}
    figures = [
        Figure(what="ximler --help: the whole process", value=medians[HELP], unit="ms", most=250),
        Figure(what="ximler --help: net of the bare interpreter", value=medians[HELP] - medians[BARE], unit="ms"),
        Figure(what="import ximler: the import itself", value=medians[IMPORT], unit="ms", most=60),
        Figure(what="import ximler: the whole process", value=medians[PROCESS], unit="ms"),
        Figure(what="import ximler: net of the bare interpreter", value=medians[PROCESS] - medians[BARE], unit="ms"),
    ]
    return [
        Table(
            title="cli: start-up",
            figures=figures,
            columns=("", "median", "spread"),
            rows=[(name, ms(median(taken)), spread(taken)) for name, taken in samples.items()],
            notes=[f"{len(samples[HELP])} rounds, in turn, a new process each."],
            samples=samples,
        )
    ]


async def _process(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=_environment(), check=True)  # noqa: ASYNC221 (nothing else runs)
    return time.perf_counter() - began


async def _inside(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run(  # noqa: ASYNC221 (nothing else runs)
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True
    )
    return float(done.stdout)


def _environment() -> dict[str, str]:
    """As a person's shell: without settings of Ximler's, and without this folder on the path."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("XIMLER_", "MONGODB_", "PYTHONPATH"))}
