"""A process that has loaded everything and forks for each command, which saves a second of imports a command.

`python forking.py TASKS ANSWERS`: the numbers of two open files. A task is a line of JSON: the arguments, the
environment, and the files that become standard input, output and error; its answer is a line with the exit
code.
"""

import gc
import importlib
import json
import os
import pkgutil
import sys
from typing import Any

import ximler
from ximler.__main__ import main


def next_command() -> dict[str, Any]:
    """Return once in each forked process, with its task."""
    for module in pkgutil.walk_packages(ximler.__path__, "ximler."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # else each fork walks, copies and frees them all
    tasks, answers = (os.fdopen(int(number), mode) for number, mode in zip(sys.argv[1:], "rw", strict=True))
    while line := tasks.readline():
        if (pid := os.fork()) == 0:
            os.close(tasks.fileno())
            os.close(answers.fileno())
            task: dict[str, Any] = json.loads(line)
            return task
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    task = next_command()
    os.environ.clear()
    os.environ.update(task["env"])
    for number, path in enumerate(task["files"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY), number)
    sys.argv = ["ximler", *task["arguments"]]
    main()
