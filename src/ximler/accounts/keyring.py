"""Secrets: password hashes, bearer tokens (stored as keyed hashes only), signed tokens, and encryption at
rest.
"""

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import argon2
from bson import ObjectId
from cachebox import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ximler.accounts.breaches import Breaches
from ximler.core.errors import Invalid, Unavailable
from ximler.core.settings import Settings

T = TypeVar("T")

__all__ = ["MAX_PASSWORD", "MIN_PASSWORD", "Busy", "KeyLost", "Keyring", "acceptable", "normalised"]

_KNOWN_TOKENS = 10_000  # whose ids are cached, which takes a tenth of the time
_TOKEN_BYTES = 32
_TOKEN_LENGTH = 43  # of 32 bytes in URL-safe base64
_PREFIX = "$argon2"
_LEAST_KIB = 8  # Argon2's own minimum
_SIGNED = re.compile(r"[A-Za-z0-9_-]{59}")  # 12 bytes of id and 32 of MAC
_NONCE_BYTES, _KEY_ID_BYTES = 12, 4
MIN_PASSWORD = 10
MAX_PASSWORD = 1000
_TURNS_A_THREAD = 2  # one hashes while the other waits for the database
_PATIENCE_S = 60.0


class Busy(Unavailable):
    code = "BUSY"


class KeyLost(Unavailable):
    """A value was encrypted under a secret key that the settings no longer contain."""

    code = "KEY_LOST"


class Keyring:
    """The secrets of the settings, ready for use. One per process; `close` ends its threads.

    Passwords: Argon2id (OWASP's parameters), in a bounded pool of threads, so that concurrent sign-ins
    neither block the event loop nor use more than `argon2_threads` × `argon2_memory_kib` of memory.

    Tokens: 256 random bits, stored as HMAC-SHA256. Reading the database yields no token, and a row for a
    chosen token cannot be made without the secret key. Each use has its own key, derived by HKDF. With
    several secret keys, the first signs and all verify.

    Recoverable values (the secret of a second factor) are encrypted and bound to purpose and owner. With
    several keys, the first encrypts and all decrypt.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.secret_keys
        self._hasher = argon2.PasswordHasher(
            time_cost=settings.argon2_time_cost, memory_cost=settings.argon2_memory_kib, parallelism=1
        )
        self._threads = ThreadPoolExecutor(settings.argon2_threads, thread_name_prefix="argon2")
        self._decoy: str | None = None
        self.breaches = Breaches(settings.breach_lookup_url) if settings.breach_lookup_url else None
        self._turns = asyncio.Semaphore(_TURNS_A_THREAD * settings.argon2_threads)
        self._ciphers: dict[tuple[bytes, str], tuple[bytes, AESGCM]] = {}
        self._mac_keys: dict[tuple[bytes, str], bytes] = {}
        # Copied for each token: half the time of starting from the key.
        self._token_ids: LRUCache[bytes, list[bytes]] = LRUCache(_KNOWN_TOKENS)  # by a digest of the token
        self._token_macs = [hmac.new(self._mac_key(key, "token"), digestmod="sha256") for key in self._keys]

    async def hash_password(self, password: str, *, field: str = "password") -> str:
        """The Argon2id hash of the normalised password. Raises Invalid if it is too short or too long."""
        return await self.compute(self._hasher.hash, acceptable(password, field=field))

    async def verify_password(self, stored: str | None, password: str) -> bool:
        """Whether the password matches the stored hash, normalised or, for older hashes, as typed.

        Without a stored hash (no such account), or with one of an unknown kind, the rejection takes equally
        long.
        """
        if len(password) > MAX_PASSWORD or not _is_unicode(password):
            return False
        forms = dict.fromkeys((normalised(password), password))
        if stored is None or not stored.startswith(_PREFIX):
            if self._decoy is None:
                self._decoy = await self.compute(self._hasher.hash, secrets.token_urlsafe())
            for form in forms:
                await self.compute(self._matches, self._decoy, form)
            return False
        for form in forms:
            if await self.compute(self._matches, stored, form):
                return True
        if (rest := self._rest(stored)) is not None:
            for form in forms:
                await self.compute(rest.hash, form)
        return False

    def _rest(self, stored: str) -> argon2.PasswordHasher | None:
        """A hasher for the cost that a hash of cheaper settings lacks, so that both take equally long."""
        try:
            theirs = argon2.extract_parameters(stored)
        except argon2.exceptions.InvalidHashError:
            return None
        missing = self._hasher.memory_cost * self._hasher.time_cost - theirs.memory_cost * theirs.time_cost
        if missing < _LEAST_KIB:
            return None
        passes = -(-missing // self._hasher.memory_cost)  # no more memory than a hash of ours
        return argon2.PasswordHasher(time_cost=passes, memory_cost=max(_LEAST_KIB, missing // passes), parallelism=1)

    async def rehash(self, stored: str, password: str) -> str | None:
        """A new hash of a password that matched `stored`, if that has other parameters or another Unicode
        form.

        Current rules for passwords do not apply, because the password may be older than they are.
        """
        form = normalised(password)
        current = not self._hasher.check_needs_rehash(stored)
        if current and (form == password or await self.compute(self._matches, stored, form)):
            return None
        return await self.compute(self._hasher.hash, form)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A slot for one whole attempt: check the rate limit, verify, count. There are two per thread, so
        even in a burst each attempt sees the counts of earlier ones. Raises Busy after a minute.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy("Too many people sign in at this moment: try again in a minute") from None
        try:
            yield
        finally:
            self._turns.release()

    def new_token(self) -> tuple[str, bytes]:
        """A token to hand out, and the id to store it under."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        return token, _token_id(self._token_macs[0], token)

    def token_ids(self, token: str) -> list[bytes]:
        """The ids it may be stored under, newest key first; none for a string that cannot be a token."""
        if len(token) != _TOKEN_LENGTH or not token.isascii():
            return []
        digest = hashlib.sha256(token.encode()).digest()
        ids: list[bytes] | None = self._token_ids.get(digest)
        if ids is None:
            ids = [_token_id(mac, token) for mac in self._token_macs]
            self._token_ids.insert(digest, ids)
        return ids

    def digest(self, purpose: str, text: str) -> bytes:
        """A keyed hash for look-ups of a value that is not stored.
        It changes when the secret key is rotated."""
        key = self._mac_key(self._keys[0], f"digest:{purpose}")
        return hmac.digest(key, text.encode(errors="surrogatepass"), "sha256")

    def sign(self, purpose: str, subject: ObjectId) -> str:
        """A token for `subject` and one purpose. Deterministic, so that a repeated mail has the same link."""
        return _text(subject.binary + self._mac(self._keys[0], purpose, subject))

    def verify(self, purpose: str, token: str) -> ObjectId | None:
        """The subject of a token made by `sign` for this purpose, or None."""
        if not _SIGNED.fullmatch(token):
            return None
        raw = base64.urlsafe_b64decode(token + "=")
        subject, mac = ObjectId(raw[:12]), raw[12:]
        genuine = any(hmac.compare_digest(mac, self._mac(key, purpose, subject)) for key in self._keys)
        return subject if genuine and _text(raw) == token else None

    def seal(self, purpose: str, content: bytes) -> bytes:
        """A MAC of 32 bytes, under a key derived for this purpose, which must be one of a few constants."""
        return hmac.digest(self._mac_key(self._keys[0], f"seal:{purpose}"), content, "sha256")

    def is_sealed(self, purpose: str, content: bytes, mac: bytes) -> bool:
        """Whether `seal` made the MAC, under any of the secret keys. In constant time."""
        made = [hmac.digest(self._mac_key(key, f"seal:{purpose}"), content, "sha256") for key in self._keys]
        return any([hmac.compare_digest(each, mac) for each in made])  # noqa: C419 (a list: every key is compared)

    def encrypt(self, purpose: str, subject: ObjectId, secret: bytes) -> bytes:
        """AES-256-GCM under a key derived for this purpose. Bound to purpose and subject: a value moved to
        another document is rejected.

        The nonces are random: safe for 2³² messages per purpose and key (NIST SP 800-38D, 8.3).
        """
        key_id, cipher = self._cipher(self._keys[0], purpose)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return key_id + nonce + cipher.encrypt(nonce, secret, subject.binary)

    def decrypt(self, purpose: str, subject: ObjectId, stored: bytes) -> bytes:
        """The plaintext. Raises KeyLost if the key is gone or the bytes were not made by `encrypt`."""
        key_id, nonce = stored[:_KEY_ID_BYTES], stored[_KEY_ID_BYTES : _KEY_ID_BYTES + _NONCE_BYTES]
        for key in self._keys:
            known, cipher = self._cipher(key, purpose)
            if known == key_id and len(nonce) == _NONCE_BYTES:
                try:
                    return cipher.decrypt(nonce, stored[_KEY_ID_BYTES + _NONCE_BYTES :], subject.binary)
                except InvalidTag:
                    continue
        raise KeyLost("The encrypted value cannot be read: XIMLER_SECRET_KEY no longer contains its key")

    def is_newest(self, purpose: str, stored: bytes) -> bool:
        """Whether it is encrypted under the first key, so that the others can be removed."""
        return stored[:_KEY_ID_BYTES] == self._cipher(self._keys[0], purpose)[0]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.breaches:
            self.breaches.close()

    async def compute(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)` in the pool, for long computations."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    def _mac(self, key: bytes, purpose: str, subject: ObjectId) -> bytes:
        return hmac.digest(self._mac_key(key, "signature"), f"{purpose}:".encode() + subject.binary, "sha256")

    def _mac_key(self, key: bytes, use: str) -> bytes:
        """A key for one use (HKDF, RFC 5869), so that a value made for one use is not valid for another.
        `use` must be one of a few constants, because keys are cached.
        """
        found = self._mac_keys.get((key, use))
        if found is None:
            found = self._mac_keys[key, use] = HKDF(SHA256(), 32, salt=None, info=f"ximler:mac:{use}".encode()).derive(
                key
            )
        return found

    def _cipher(self, key: bytes, purpose: str) -> tuple[bytes, AESGCM]:
        """A key's id, which is stored before the ciphertext, and the key (HKDF, RFC 5869)."""
        found = self._ciphers.get((key, purpose))
        if found is None:
            hkdf = HKDF(SHA256(), _KEY_ID_BYTES + 32, salt=None, info=f"ximler:encrypt:{purpose}".encode())
            derived = hkdf.derive(key)
            found = self._ciphers[key, purpose] = derived[:_KEY_ID_BYTES], AESGCM(derived[_KEY_ID_BYTES:])
        return found


def _token_id(mac: hmac.HMAC, token: str) -> bytes:
    mac = mac.copy()
    mac.update(token.encode())
    return mac.digest()


def acceptable(password: str, *, field: str = "password") -> str:
    """The normalised password. Raises Invalid for one of another length, or that is not Unicode."""
    password = normalised(password)
    if len(password) < MIN_PASSWORD:
        raise Invalid.field(field, f"must be {MIN_PASSWORD} characters or more")
    if len(password) > MAX_PASSWORD:
        raise Invalid.field(field, f"must be at most {MAX_PASSWORD} characters")
    if not _is_unicode(password):
        raise Invalid.field(field, "contains an unpaired surrogate: it is not valid Unicode")
    return password


def normalised(password: str) -> str:
    """The form that is hashed: NFKC (NIST SP 800-63B, 3.1.1.2), so that the keyboard's encoding of `é` does
    not matter.

    Texts too long for a password are returned unchanged.
    """
    return unicodedata.normalize("NFKC", password) if len(password) <= MAX_PASSWORD else password


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
