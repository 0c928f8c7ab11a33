"""Files that settings come from: a TOML file, and the generated secret key in the data folder."""

import os
import secrets
import tomllib
from pathlib import Path
from typing import Any

from ximler.core.errors import Invalid

__all__ = ["MIN_SECRET", "SettingsError", "generated_secret", "read_toml"]

_SECRET_FILE = "secret_key"  # noqa: S105 (a file name)
MIN_SECRET = 32  # characters


class SettingsError(Invalid):
    """A setting is missing or invalid. The message names the variable."""

    code = "SETTINGS_INVALID"


def read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as problem:
        raise SettingsError(f"{file}: {problem.strerror or problem}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(f"{file}: not valid TOML: {problem}") from None


def generated_secret(data_dir: Path) -> str:
    """The key, created once and readable by its owner only. Racing processes get the same one."""
    path = data_dir / _SECRET_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = data_dir / f".{_SECRET_FILE}.{secrets.token_hex(4)}"
        if not path.exists():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_urlsafe(32))
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass  # another process was first: its key is the one
            finally:
                temporary.unlink()
        key = path.read_bytes().strip().decode("ascii", "replace")
    except OSError as problem:
        raise SettingsError(f"{path}: {problem.strerror}: choose another folder with --data-dir") from None
    if len(key) < MIN_SECRET:
        raise SettingsError(f"{path} holds no key of {MIN_SECRET} characters: restore it, or remove it for a new one")
    return key
