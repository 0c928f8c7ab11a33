"""Whether a password is hard enough to guess.

Length (NIST SP 800-63B, 3.1.1.2, asks for no more), zxcvbn's estimate of what guessing takes (its lists hold 30,000 common
passwords, names and words), and that the account's own words do not carry it. With `breach_lookup_url`, also whether it is
among those that other sites have lost: by k-anonymity, so that neither the password nor its hash leaves this process.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import httpx
import structlog

from ximler.accounts.keyring import MAX_PASSWORD, MIN_PASSWORD, Keyring
from ximler.core.errors import Invalid

__all__ = ["WeakPassword", "check"]

_log = structlog.get_logger("ximler.accounts")
_ANALYSED = 72  # characters: the estimate takes time that grows with the square of them, and is certain long before
_ENOUGH = 3  # of 4: "safely unguessable", more than 10⁸ guesses
_SHORT_WORD = 4  # shorter ones stand in anybody's password by chance
_LOOKUP_S = 2.0
_OURS = ("ximler",)


class WeakPassword(Invalid):
    code = "WEAK_PASSWORD"


async def check(keyring: Keyring, password: str, *, field: str = "password", own: Iterable[str] = ()) -> None:
    """Raises WeakPassword, with what would make it better. `own` is what anybody knows of the account: name, address.

    Of what cannot be a password at all nothing is said here: `Keyring.hash_password` refuses it.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD or password.encode(errors="replace").decode() != password:
        return
    problem = await keyring.compute(_problem, password[:_ANALYSED], _words(own))
    if problem is None and keyring.breach_lookup_url and await _is_breached(keyring.breach_lookup_url, password):
        problem = (
            "is known from a breach of another site, where attackers look first: choose one that is used nowhere else"
        )
    if problem:
        raise WeakPassword(f"{field}: {problem}", fields={field: problem})


def _words(own: Iterable[str]) -> list[str]:
    """The parts of names and addresses: `Ada Lovelace`, `ada.l@example.com` → ada, lovelace, example."""
    parts = {part for text in own for part in re.split(r"[\W_]+", text.casefold()) if len(part) >= _SHORT_WORD - 1}
    return [*sorted(parts, key=len, reverse=True), *_OURS]


def _problem(password: str, words: list[str]) -> str | None:
    rest = folded = password.casefold()
    for word in words:
        if len(word) >= _SHORT_WORD:
            rest = rest.replace(word, "")
    if rest != folded and (not rest or _estimate(rest[:_ANALYSED], words)["score"] < _ENOUGH):
        return "is little more than your name, your address or ours: add words that have nothing to do with you"
    said = _estimate(password, words)
    return _told(said) if said["score"] < _ENOUGH else None


def _estimate(password: str, words: list[str]) -> dict[str, Any]:
    # Here, because its word lists take 0.1 s to load, which `ximler --help` need not pay.
    from zxcvbn import zxcvbn  # type: ignore[import-untyped]  # it says no types

    found: dict[str, Any] = zxcvbn(password, user_inputs=words)
    return found


def _told(said: dict[str, Any]) -> str:
    """zxcvbn's own words, as the end of a sentence that begins with the field."""
    feedback = said["feedback"]
    reasons = [str(text).rstrip(".") for text in (feedback["warning"], *feedback["suggestions"]) if text]
    advice = ". ".join(reasons) or "Add another word or two. Uncommon words are better"
    return f"is too easy to guess. {advice}."


async def _is_breached(url: str, password: str) -> bool:
    """Asks for all hashes that begin with five of its digits (https://haveibeenpwned.com/API/v3#PwnedPasswords), padded, so
    that not even the answer's length tells. A service that does not answer refuses nobody."""
    digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()  # the service's choice
    try:
        async with httpx.AsyncClient(timeout=_LOOKUP_S) as http:
            answer = await http.get(f"{url.rstrip('/')}/{digest[:5]}", headers={"Add-Padding": "true"})
            answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        _log.warning("breach look-up failed", reason=f"{type(problem).__name__}: {problem}")
        return False
    for line in answer.text.splitlines():
        suffix, _, count = line.strip().partition(":")
        if suffix.upper() == digest[5:]:
            return count.strip() != "0"  # padding has a count of zero
    return False
