"""The key that signs seals (Ed25519), kept outside the database so that database access does not suffice to
make a seal.

One per line, or separated by commas: the current key first, then retired ones, of which the public half
suffices (`pub:…`). It is in `XIMLER_AUDIT_KEY`, or in the file `audit_key` of the data folder.
"""

import base64
import hashlib
import os
import secrets
from pathlib import Path
from typing import Self

import msgspec
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ximler.core.errors import Invalid
from ximler.core.settings import Settings, SettingsError

__all__ = ["NoSealKey", "SealKeys", "find", "new_key", "replace"]

_log = structlog.get_logger("ximler.audit")
FILE = "audit_key"
_PUBLIC = "pub:"


class NoSealKey(Invalid):
    """There is no key to seal or verify with."""

    code = "AUDIT_KEY_MISSING"


class SealKeys(msgspec.Struct, frozen=True):
    """`signing` makes seals (None with public keys only); `known` are the trusted public keys, by key id."""

    signing: Ed25519PrivateKey | None
    known: dict[str, Ed25519PublicKey]

    @classmethod
    def parse(cls, text: str, *, source: str = "XIMLER_AUDIT_KEY") -> Self:
        """Raises SettingsError if the text is not a list of keys."""
        signing, known = None, {}
        for number, part in enumerate(text.replace(",", "\n").split()):
            raw = _decoded(part.removeprefix(_PUBLIC), source)
            if part.startswith(_PUBLIC):
                public = Ed25519PublicKey.from_public_bytes(raw)
            else:
                private = Ed25519PrivateKey.from_private_bytes(raw)
                signing = private if number == 0 else signing
                public = private.public_key()
            known[key_id(public)] = public
        if not known:
            raise SettingsError(f"{source} holds no key", fields={"audit_key": "is empty"})
        return cls(signing, known)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Raises NoSealKey if there is none, SettingsError if it is unusable.

        For an embedded database a missing key is generated.
        """
        if settings.audit_key:
            return cls.parse(settings.audit_key)
        path = settings.data_path / FILE
        if not path.exists():
            if settings.mongodb_uri is not None:
                raise NoSealKey(
                    "There is no key to seal the audit log with. Make one with 'ximler audit key --new', and set it as "
                    "XIMLER_AUDIT_KEY wherever a worker runs."
                )
            _publish(path, _encoded(secrets.token_bytes(32)))
        return cls.parse(path.read_text(), source=str(path))

    def sign(self, digest: bytes) -> tuple[str, bytes]:
        """(key id, signature). Raises NoSealKey."""
        if self.signing is None:
            raise NoSealKey("The key at hand is a public one: it can check seals, and make none")
        return key_id(self.signing.public_key()), self.signing.sign(digest)

    def verifies(self, by: str, digest: bytes, signature: bytes) -> bool | None:
        """None if the key is unknown."""
        public = self.known.get(by)
        if public is None:
            return None
        try:
            public.verify(signature, digest)
        except InvalidSignature:
            return False
        return True

    @property
    def public(self) -> list[str]:
        """The public keys, for auditors: `pub:…` of every key."""
        return [_PUBLIC + _encoded(public.public_bytes_raw()) for public in self.known.values()]

    def renewed(self) -> str:
        """The text of a new key, followed by the previous ones as retired keys."""
        return "\n".join([new_key(), *self.public])


def find(settings: Settings) -> SealKeys | None:
    """The keys for a worker that seals; None, with a warning, if there are none or none signs. Raises
    SettingsError.
    """
    try:
        keys = SealKeys.load(settings)
    except NoSealKey as problem:
        _log.warning("the audit log is not sealed", remedy=problem.message)
        return None
    if keys.signing is None:
        _log.warning("the audit log is not sealed", remedy="XIMLER_AUDIT_KEY must begin with a key that is not public")
        return None
    return keys


def new_key() -> str:
    return _encoded(secrets.token_bytes(32))


def key_id(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def replace(settings: Settings, text: str) -> Path:
    """Replace the keys in the data folder's file. Returns its path."""
    path = settings.data_path / FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    _write(new, text)
    new.replace(path)
    return path


def _publish(path: Path, text: str) -> None:
    """Create the file; of racing processes, one succeeds."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    _write(new, text)
    try:
        os.link(new, path)
    except FileExistsError:
        pass  # another process was first: its key is used
    finally:
        new.unlink()


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str, source: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise SettingsError(
            f"{source}: a key is 32 bytes in URL-safe base64, as 'ximler audit key --new' makes it",
            fields={"audit_key": "is not a key"},
        )
    return raw
