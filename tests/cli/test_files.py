import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ximler.cli.files import NotWritten, Output, output_option


@click.command()
@output_option
def write(output: Output) -> None:
    with output.opened() as file:
        file.write(b"new")


def test_an_existing_file_is_replaced_with_force_only(tmp_path):
    there = tmp_path / "there.csv"
    there.write_text("old")
    there.chmod(0o644)
    refused = CliRunner().invoke(write, ["-o", str(there)])
    assert (refused.exit_code, there.read_text()) == (2, "old")
    assert "--force" in refused.output
    for arguments in (["--force", "-o", str(there)], ["-o", str(there), "--force"]):
        there.write_text("old")
        assert CliRunner().invoke(write, arguments).exit_code == 0
        assert (there.read_text(), there.stat().st_mode & 0o777) == ("new", 0o600)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert CliRunner().invoke(write, ["-o", str(link)]).exit_code == 2
    for nowhere in (tmp_path, tmp_path / "no" / "folder"):
        assert CliRunner().invoke(write, ["-o", str(nowhere)]).exit_code == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    there = tmp_path / "there.csv"
    there.write_text("old")

    def interrupted(output: Output) -> None:
        with output.opened() as file:
            file.write(b"half")
            raise KeyboardInterrupt

    for output in (Output(tmp_path / "new.csv"), Output(there, replace=True)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(output)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("there.csv", "old")]

    def late(output: Output, path: Path) -> None:
        with output.opened() as file:
            file.write(b"ours")
            path.write_text("theirs")

    with pytest.raises(NotWritten, match="--force"):
        late(Output(tmp_path / "late"), tmp_path / "late")
    assert (tmp_path / "late").read_text() == "theirs"


def test_nothing_is_left_of_a_process_that_is_killed(tmp_path):
    script = (
        "import sys, pathlib; from ximler.cli.files import Output\n"
        f"with Output(pathlib.Path({str(tmp_path / 'new.csv')!r})).opened() as file:\n"
        "    file.write(b'half'); file.flush(); print(); sys.stdout.flush(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        writer.terminate()
    assert list(tmp_path.iterdir()) == []


def test_devices_and_standard_output_are_written_to_as_they_are(tmp_path):
    assert CliRunner().invoke(write, ["-o", os.devnull]).exit_code == 0
    assert CliRunner().invoke(write, []).output == "new"
    with pytest.raises(NotWritten, match="No space left"), Output(Path("/dev/full")).opened() as file:
        file.write(b"x")
