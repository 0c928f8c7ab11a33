"""What every command has in common: help, version, errors without tracebacks, exit codes."""

import subprocess
import sys

import pytest

from ximler import __version__


def test_help_lists_every_command(ximler):
    result = ximler("--help")
    assert result.returncode == 0
    for command in ("up", "db", "users", "shell"):
        assert f"\n  {command} " in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['ximler', '--help']\n"
        "from ximler.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'litestar', 'pymongo', 'graphql', 'rich', 'uvicorn', 'structlog'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "db",
        "db init",
        "db status",
        "db seed",
        "db adopt",
        "users create",
        "users list",
        "keys create",
        "keys rotate",
        "shell",
    ],
)
def test_every_command_explains_itself(ximler, command):
    result = ximler(*command.split(), "--help")
    assert result.returncode == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize("module", ["click", "ximler.cli.up"])
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(module):
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['ximler', 'up']\n"
        "runpy.run_module('ximler', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "\naborted\n")


def test_version(ximler):
    assert ximler("--version").stdout == f"ximler {__version__}\n"


def test_an_unknown_command_is_a_usage_error(ximler):
    result = ximler("upp")
    assert result.returncode == 2
    assert "No such command 'upp'" in result.stderr


def test_a_wrong_setting_names_its_variable(ximler):
    result = ximler("db", "status", env={"XIMLER_POOL_SIZE": "many"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: XIMLER_POOL_SIZE: Expected `int`")


def test_a_database_that_does_not_answer_is_one_sentence_and_exit_code_8(ximler):
    env = {"MONGODB_URI": "mongodb://me:secret@127.0.0.1:1/shop?serverSelectionTimeoutMS=300"}
    for command in (["db", "status"], ["users", "list"], ["up", "--port", "0"]):
        result = ximler(*command, env={**env, "XIMLER_SECRET_KEY": "k" * 32})
        assert result.returncode == 8
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "No MongoDB answers at mongodb://127.0.0.1:1/shop" in errors[0]
        assert "secret" not in result.stderr
        assert "Traceback" not in result.stderr


def test_your_own_server_requires_a_secret_key(ximler):
    result = ximler("up", env={"MONGODB_URI": "mongodb://127.0.0.1:1/"})
    assert result.returncode == 2
    assert "XIMLER_SECRET_KEY is required with MONGODB_URI" in result.stderr


def test_a_bug_shows_no_traceback_unless_asked_for(ximler):
    source = "import ximler.cli.db as db\nfrom ximler.cli import main as m\ndb.db.callback = None\n"
    program = (
        source
        + "m._COMMANDS['db'] = ('ximler.no_such_module', 'x', '')\nimport sys; sys.argv = ['ximler', 'db']; m.main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 70
    assert "This is a bug" in result.stderr
    assert "Traceback" not in result.stderr
