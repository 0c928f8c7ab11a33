"""The errors that Ximler raises on purpose.

    XimlerError
    ├── Invalid            the input is invalid; `fields` has the reasons         HTTP 422   exit 2
    ├── Unauthenticated    no valid credentials                                    HTTP 401   exit 3
    ├── Forbidden          authenticated, without the scope or role needed        HTTP 403   exit 4
    ├── NotFound           absent, deleted, or another user's                     HTTP 404   exit 5
    ├── Conflict           contradicts stored data: retry with fresh data         HTTP 409   exit 6
    ├── LimitExceeded      a quota or rate is used up                             HTTP 429   exit 7
    └── Unavailable        a dependency (database, mail) is down: try later       HTTP 503   exit 8

A domain's error subclasses one kind and sets a stable `code` (SCREAMING_SNAKE, part of the public interface).
The tables that translate a kind live in the interfaces (`http.problems`, `graphql.engine.errors`,
`cli.main`), one each. Anything else that is raised is a bug, and stays one.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

__all__ = [
    "Conflict",
    "Forbidden",
    "Invalid",
    "LimitExceeded",
    "NotFound",
    "Unauthenticated",
    "Unavailable",
    "XimlerError",
    "all_of",
]


class XimlerError(Exception):
    """`code` is for programs, the message for people, `fields` for forms; `retry_after_s` says when to try
    again.
    """

    code: ClassVar[str] = "ERROR"
    retry_after_s: float | None = None

    def __init__(self, message: str, *, fields: Mapping[str, str | int] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, str | int] = dict(fields or {})


class Invalid(XimlerError):
    code = "INVALID"

    @classmethod
    def field(cls, name: str, problem: str) -> "Invalid":
        """The common case: one field is wrong. The message names it as well."""
        return cls(f"{name}: {problem}", fields={name: problem})


def all_of(*checks: Callable[[], str]) -> list[str]:
    """The results of the checks. Raises one Invalid that names every field that they reject."""
    results, problems = [], dict[str, str | int]()
    for check in checks:
        try:
            results.append(check())
        except Invalid as error:
            problems |= error.fields
    if problems:
        raise Invalid("; ".join(f"{name}: {problem}" for name, problem in problems.items()), fields=problems)
    return results


class Unauthenticated(XimlerError):
    code = "UNAUTHENTICATED"


class Forbidden(XimlerError):
    code = "FORBIDDEN"


class NotFound(XimlerError):
    code = "NOT_FOUND"


class Conflict(XimlerError):
    code = "CONFLICT"


class LimitExceeded(XimlerError):
    code = "LIMIT_EXCEEDED"

    def __init__(
        self, message: str, *, fields: Mapping[str, str | int] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, fields=fields)
        self.retry_after_s = retry_after_s


class Unavailable(XimlerError):
    code = "UNAVAILABLE"
