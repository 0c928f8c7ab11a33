"""The fingerprint of an entry: a hash of every field, that still can be checked when the person in it has
been erased.

    hash    = SHA-256("ximler audit 1" ‖ BSON(rest) ‖ of person and actor, if any: its name ‖ digest ‖ paths, NUL between ‖ NUL)
    digest  = SHA-256(salt ‖ BSON({path: value, …}))
    mac     = BLAKE2b-128(hash), keyed: who writes to the database, but does not know the secret key, cannot make one
    keyId   = which key that was

`rest` is the document as it is stored, in its order of fields, without personal values and without
`metadata._audit`, where the fingerprint is kept: `{v, hash, mac, keyId, person: {paths, salt, digest}, actor:
{paths, salt, digest}}`. BSON is a deterministic encoding of what MongoDB keeps: reading and writing it again
gives the same bytes.

Personal values (see `redaction`) enter as a salted digest, one of the `person` (`userId`) and one of an
`actor` who is somebody else (`actorId`). Without values and salt nothing can be learnt from a digest, and the
hash holds as before: that is what erasing does.

An entry without `metadata._audit` (another application's) has SHA-256("ximler audit foreign" ‖
BSON(document)).
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import bson
import msgspec
from bson.codec_options import CodecOptions, DatetimeConversion

__all__ = ["ERASABLE", "OPTIONS", "Examined", "authentic", "examine", "make", "rest_of"]

# Times that Python has no room for stay as they are; text that is no Unicode does not stop the rest from
# being read.
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
ERASABLE = ("person", "actor")
_PREFIX, _FOREIGN = b"ximler audit 1", b"ximler audit foreign"
_KEYS = frozenset({"v", "hash", "mac", "keyId", *ERASABLE})
_SALT_BYTES = 16

Personal = Sequence[tuple[str, str, Any]]  # (path, of, value)


class Examined(msgspec.Struct, gc=False):
    """What an entry turned out to be. `problem` says what does not fit; `erased` whose values are gone."""

    hash: bytes
    ours: bool
    problem: str | None = None
    erased: tuple[str, ...] = ()


def make(raw: dict[str, Any], personal: Personal, keys: Sequence[bytes]) -> dict[str, Any]:
    """The fingerprint of a document that is about to be stored: what goes into `metadata._audit`.

    Without a key there is no `mac`, and the entry will count as somebody else's.
    """
    marks: dict[str, dict[str, Any]] = {}
    for of in ERASABLE:
        if values := {path: value for path, whose, value in personal if whose == of}:
            salt = secrets.token_bytes(_SALT_BYTES)
            marks[of] = {"paths": list(values), "salt": salt, "digest": _digest(salt, values)}
    digest = _hash(rest_of(raw, [path for path, _, _ in personal]), marks)
    made: dict[str, Any] = {"v": 1, "hash": digest}
    if keys:
        made |= {"mac": _mac(keys[0], digest), "keyId": _key_id(keys[0])}
    return made | marks


def rest_of(raw: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """A copy without the values at `paths` and without the fingerprint. Objects that are left empty stay."""
    rest = dict(raw)
    if paths or "_audit" in rest.get("metadata", ()):
        rest["metadata"] = _copied(rest.get("metadata", {}))
        rest["metadata"].pop("_audit", None)
    for path in paths:
        _pop(rest, path)
    return rest


def examine(raw: dict[str, Any], stored: bytes | None = None) -> Examined:
    """Look at a stored document, which is used up.

    With `stored`, the bytes that it was decoded from, also whether they hold nothing else: of a field that is
    there twice we read the last, and the server searches the first.
    """
    metadata = raw.get("metadata")
    mark = metadata.get("_audit") if type(metadata) is dict else None
    if mark is None:
        if type(metadata) is dict:
            metadata.pop("_audit", None)
        return Examined(hashlib.sha256(_FOREIGN + bson.encode(raw)).digest(), ours=False)
    problem, erased = None, []
    try:
        if stored is not None and bson.encode(raw) != stored:
            problem = "it holds more than can be read"
        del raw["metadata"]["_audit"]
        if mark["v"] != 1 or not _KEYS.issuperset(mark):
            problem = "its fingerprint is malformed"
        for of in ERASABLE:
            if of not in mark:
                continue
            one = mark[of]
            values = {}
            for path in one["paths"]:
                if path in raw:
                    values[path] = raw.pop(path)
                elif (value := _pop(raw, path)) is not _ABSENT:
                    values[path] = value
            salt = one.get("salt")
            if salt is None and not values:
                erased.append(of)
            elif salt is None:
                problem = f"{', '.join(values)}: left where what is personal was erased"
            elif len(values) != len(one["paths"]) or _digest(salt, values) != one["digest"]:
                problem = f"{', '.join(one['paths'])}: not what was written"
        found = _hash(raw, mark)
    except (KeyError, TypeError, AttributeError, ValueError):
        return Examined(b"", ours=True, problem="its fingerprint is malformed")
    if problem is None and found != mark["hash"]:
        problem = "it does not match its own fingerprint"
    return Examined(found, ours=True, problem=problem, erased=tuple(erased))


def authentic(digest: bytes, mac: object, keys: Sequence[bytes]) -> bool:
    """Whether one of our keys made it."""
    return type(mac) is bytes and any(secrets.compare_digest(mac, _mac(key, digest)) for key in keys)


_ABSENT = object()


def _hash(rest: Mapping[str, Any], marks: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(_PREFIX + bson.encode(rest))
    for of in ERASABLE:
        if of in marks:
            one = marks[of]
            digest.update(b"%b%b%b\0" % (of.encode(), one["digest"], "\0".join(one["paths"]).encode()))
    return digest.digest()


def _digest(salt: bytes, values: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(salt + bson.encode(values)).digest()


def _mac(key: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(digest, key=key, digest_size=16).digest()


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"ximler audit key id" + key).hexdigest()[:8]


def _pop(raw: dict[str, Any], path: str) -> Any:
    """Take the value at the path out."""
    inner: Any = raw
    if "." in path:
        *above, path = path.split(".")
        for name in above:
            inner = inner.get(name) if type(inner) is dict else None
        if type(inner) is not dict:
            return _ABSENT
    return inner.pop(path, _ABSENT)


def _copied(value: Any) -> Any:
    """Objects anew, down to whatever is none."""
    return {name: _copied(inner) for name, inner in value.items()} if type(value) is dict else value
