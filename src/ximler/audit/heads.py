"""The head of the chain of seals, kept outside the database: in the file `audit_head` of the data folder.

An attacker with the rights to remove entries could remove all of them with their seals; a sealer would then
begin a new, consistent chain over the rest. The kept head prevents this: a sealer on a machine that has
sealed before does not begin a new chain by itself.
"""

import contextlib
import os
import secrets
from pathlib import Path

import msgspec
import structlog

from ximler.audit.seals import Head

__all__ = ["KeptHead"]

_log = structlog.get_logger("ximler.audit")
FILE = "audit_head"


class KeptHead:
    """The newest head of one database that this machine has seen. Several processes may share the file."""

    def __init__(self, folder: Path, database: str) -> None:
        self._path = folder / FILE
        self._database = database

    def read(self) -> Head | None:
        """None if nothing was sealed from this machine yet."""
        return self._all().get(self._database)

    def keep(self, head: Head, *, anew: bool = False) -> None:
        """Replace the kept head by a later one of the chain; with `anew`, by the head of another chain.

        A write error is logged only, because sealing is more important.
        """
        heads = self._all()
        known = heads.get(self._database)
        if known is not None and known.number >= head.number and not anew:
            return
        new = self._path.with_name(f".{FILE}.{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.touch(mode=0o600)
            new.write_bytes(msgspec.json.encode(heads | {self._database: head}))
            new.replace(self._path)
        except OSError as error:
            _log.warning(
                "the head of the audit log cannot be kept", file=str(self._path), reason=os.strerror(error.errno or 0)
            )
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _all(self) -> dict[str, Head]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Head])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("the kept head of the audit log cannot be read", file=str(self._path), reason=str(error))
            return {}
