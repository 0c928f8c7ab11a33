"""The fingerprint of an entry: a hash of every field that remains verifiable after the person is erased.

    hash    = SHA-256("ximler audit 1" ‖ BSON(rest)
              ‖ of person and actor, if any: its name ‖ digest ‖ paths, NUL between ‖ NUL)
    digest  = SHA-256(salt ‖ BSON({path: value, …}))
    mac     = BLAKE2b-128(hash) under a key derived from the secret key, which database access does not reveal
    keyId   = the id of that key

`rest` is the document as stored, with its order of fields, without personal values and without
`metadata._audit`, which holds the fingerprint: `{v, hash, mac, keyId, person: {paths, salt, digest}, actor:
{paths, salt, digest}}`. BSON is deterministic: decoding and encoding it again yields the same bytes.

Personal values (see `redaction`) enter as a salted digest: one of the `person` (`userId`) and one of an
`actor` other than the person (`actorId`). Erasure removes values and salt: the digest then reveals nothing,
and the hash stays valid.

The hash of an entry without `metadata._audit` (another application's) is SHA-256("ximler audit foreign" ‖
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

# Times outside Python's range stay undecoded, and invalid Unicode does not prevent reading the rest.
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
ERASABLE = ("person", "actor")
_PREFIX, _FOREIGN = b"ximler audit 1", b"ximler audit foreign"
_KEYS = frozenset({"v", "hash", "mac", "keyId", *ERASABLE})
_SALT_BYTES = 16

Personal = Sequence[tuple[str, str, Any]]  # (path, of, value)


class Examined(msgspec.Struct, gc=False):
    """The result of examining an entry. `problem` describes a mismatch;
    `erased` names whose values are gone."""

    hash: bytes
    ours: bool
    problem: str | None = None
    erased: tuple[str, ...] = ()


def make(raw: dict[str, Any], personal: Personal, keys: Sequence[bytes]) -> dict[str, Any]:
    """The fingerprint of a document before it is stored: the value of `metadata._audit`.

    Without a key there is no `mac`, and the entry counts as foreign.
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
    """A copy without the values at `paths` and without the fingerprint. Emptied objects stay."""
    rest = dict(raw)
    if paths or "_audit" in rest.get("metadata", ()):
        rest["metadata"] = _copied(rest.get("metadata", {}))
        rest["metadata"].pop("_audit", None)
    for path in paths:
        _pop(rest, path)
    return rest


def examine(raw: dict[str, Any], stored: bytes | None = None) -> Examined:
    """Check a stored document, consuming it.

    With `stored`, the bytes that it was decoded from, also detects duplicate fields: the driver reads the
    last value and the server searches the first.
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
                problem = f"{', '.join(values)}: left behind by the erasure of personal values"
            elif len(values) != len(one["paths"]) or _digest(salt, values) != one["digest"]:
                problem = f"{', '.join(one['paths'])}: differs from the written value"
        found = _hash(raw, mark)
    except (KeyError, TypeError, AttributeError, ValueError):
        return Examined(b"", ours=True, problem="its fingerprint is malformed")
    if problem is None and found != mark["hash"]:
        problem = "it does not match its own fingerprint"
    return Examined(found, ours=True, problem=problem, erased=tuple(erased))


def authentic(digest: bytes, mac: object, keys: Sequence[bytes]) -> bool:
    """Whether one of our keys made the mac."""
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
    """Remove and return the value at the path."""
    inner: Any = raw
    if "." in path:
        *above, path = path.split(".")
        for name in above:
            inner = inner.get(name) if type(inner) is dict else None
        if type(inner) is not dict:
            return _ABSENT
    return inner.pop(path, _ABSENT)


def _copied(value: Any) -> Any:
    """A copy of nested objects."""
    return {name: _copied(inner) for name, inner in value.items()} if type(value) is dict else value
