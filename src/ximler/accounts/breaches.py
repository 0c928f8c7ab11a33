"""Breach look-up: whether a password appears in known breaches.

By k-anonymity (https://haveibeenpwned.com/API/v3#PwnedPasswords): only five digits of the hash leave this
process. If the service fails or takes longer than two seconds, the password is accepted.
"""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import structlog

__all__ = ["Breaches"]

_log = structlog.get_logger("ximler.accounts")
_TIMEOUT_S = 2.0
_THREADS = 4


class Breaches:
    """One per process: `close` ends its threads and connections.

    The client is synchronous and lives in threads of its own. Creating it loads the certificate authorities,
    0.1 s that would stall the event loop, and a slow service must not hold the threads that hash passwords.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="breaches")
        self._client = self._threads.submit(httpx.Client, timeout=_TIMEOUT_S)

    async def contain(self, password: str) -> bool:
        """Whether the password is in a known breach. False after a timeout or failure, which is logged."""
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()  # the service's choice
        try:
            async with asyncio.timeout(_TIMEOUT_S):  # waiting for a thread included
                suffixes = await asyncio.get_running_loop().run_in_executor(self._threads, self._range, digest[:5])
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as problem:
            _log.warning("breach look-up failed", reason=f"{type(problem).__name__}: {problem}")
            return False
        return digest[5:] in suffixes

    def close(self) -> None:
        """Reject new look-ups, and close the connections when running ones
        have ended (two seconds at most)."""
        self._threads.submit(lambda: self._client.result().close())
        self._threads.shutdown(wait=False)

    def _range(self, prefix: str) -> set[str]:
        """Suffixes of the known hashes with this prefix. Padding, which hides their number, has a count of
        zero.
        """
        answer = self._client.result().get(f"{self._url}/{prefix}", headers={"Add-Padding": "true"})
        answer.raise_for_status()
        lines = (line.strip().partition(":") for line in answer.text.splitlines())
        return {suffix.upper() for suffix, _, count in lines if count.strip() != "0"}
