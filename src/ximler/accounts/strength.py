"""Password strength: whether a password is hard enough to guess.

Length (NIST SP 800-63B, 3.1.1.2, requires no more), zxcvbn's estimate of the guesses needed (its lists hold
30,000 common passwords, names and words), and that the password does not consist of the account's own words.
With `breach_lookup_url`, passwords known from breaches are rejected too (`breaches`).
"""

import re
from collections.abc import Iterable

from zxcvbn_rs_py import zxcvbn

from ximler.accounts.keyring import MAX_PASSWORD, MIN_PASSWORD, Keyring, normalised
from ximler.core.errors import Invalid

__all__ = ["WeakPassword", "check"]

# zxcvbn tries every combination of l33t substitutions on every part of the password. 48 characters with 6
# different l33t symbols take at most 25 ms, half the time of hashing; without both limits 72 symbols take 0.5
# s (measured).
_ANALYSED = 48
_SUBSTITUTED = 6
_L33T = "4@8({[<3691!|7$5+0%2"
_OTHER_SYMBOLS = "~^&*_=,.:;?\"'\\/#)}]>"

_ENOUGH = 3  # of 4: "safely unguessable", more than 10⁸ guesses
_MAX_WORDS = 50
_SHORT_WORD = 4  # shorter ones occur in any password by chance
_OURS = ("ximler",)


class WeakPassword(Invalid):
    code = "WEAK_PASSWORD"


async def check(keyring: Keyring, password: str, *, field: str = "password", own: Iterable[str] = ()) -> None:
    """Raises WeakPassword, with advice. `own` is public knowledge about the account: name, address.

    Texts that are not valid passwords pass, because `Keyring.hash_password` rejects them.
    """
    password = normalised(password)
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD or password.encode(errors="replace").decode() != password:
        return
    problem = await keyring.compute(_problem, password, _words(own))
    if problem is None and keyring.breaches and await keyring.breaches.contain(password):
        problem = (
            "is known from a breach of another site, where attackers look first: choose one that is used nowhere else"
        )
    if problem:
        raise WeakPassword(f"{field}: {problem}", fields={field: problem})


def _words(own: Iterable[str]) -> list[str]:
    """The parts of names and addresses: `Ada Lovelace`, `ada.l@example.com` → ada, lovelace, example."""
    parts = {part for text in own for part in re.split(r"[\W_]+", text.casefold()) if len(part) >= _SHORT_WORD - 1}
    return [*sorted(parts, key=len, reverse=True)[:_MAX_WORDS], *_OURS]


def _problem(password: str, words: list[str]) -> str | None:
    rest = folded = password.casefold()
    for word in words:
        if len(word) >= _SHORT_WORD:
            rest = rest.replace(word, "")
    if rest != folded and (not rest or int(zxcvbn(_bounded(rest), words).score) < _ENOUGH):
        return "is little more than your name, your address or ours: add unrelated words"
    estimate = zxcvbn(_bounded(password), words)
    if int(estimate.score) >= _ENOUGH:
        return None
    feedback = estimate.feedback
    reasons = [str(text).rstrip(".") for text in (feedback.warning, *feedback.suggestions) if text] if feedback else []
    advice = ". ".join(reasons) or "Add another word or two. Uncommon words are better"
    return f"is too easy to guess. {advice}."


def _bounded(password: str) -> str:
    """The first characters of the password, with the 7th and later l33t symbols replaced by symbols without
    substitution.
    """
    start = password[:_ANALYSED]
    used = [symbol for symbol in dict.fromkeys(start) if symbol in _L33T]
    return start.translate(dict(zip(map(ord, used[_SUBSTITUTED:]), _OTHER_SYMBOLS, strict=False)))
