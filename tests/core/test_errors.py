"""The seven kinds of error: stable codes, fields for forms, a message for people."""

import copy
import pickle

import pytest

from ximler.core import errors
from ximler.core.errors import Invalid, LimitExceeded, NotFound, XimlerError

CODES = {
    "Invalid": "INVALID",
    "Unauthenticated": "UNAUTHENTICATED",
    "Forbidden": "FORBIDDEN",
    "NotFound": "NOT_FOUND",
    "Conflict": "CONFLICT",
    "LimitExceeded": "LIMIT_EXCEEDED",
    "Unavailable": "UNAVAILABLE",
}


def test_there_are_seven_kinds_with_stable_codes() -> None:
    classes = [name for name in errors.__all__ if isinstance(getattr(errors, name), type) and name != "XimlerError"]
    kinds = {name: getattr(errors, name).code for name in classes}
    assert kinds == CODES
    assert all(issubclass(getattr(errors, name), XimlerError) for name in CODES)


@pytest.mark.parametrize("name", CODES)
def test_an_error_carries_its_message_and_its_fields(name: str) -> None:
    error = getattr(errors, name)("No.", fields={"a": "is wrong"})
    assert (str(error), error.message, error.fields) == ("No.", "No.", {"a": "is wrong"})
    assert getattr(errors, name)("No.").fields == {}


def test_the_fields_of_one_error_are_its_own() -> None:
    fields = {"a": "is wrong"}
    error = Invalid("No.", fields=fields)
    fields["b"] = "too"
    assert error.fields == {"a": "is wrong"}


def test_one_wrong_field_is_in_the_message_and_in_the_fields() -> None:
    error = Invalid.field("limits.projects", "is missing")
    assert (error.message, error.fields) == ("limits.projects: is missing", {"limits.projects": "is missing"})


def test_a_domain_s_error_keeps_its_code_through_its_kind() -> None:
    class CouponNotFound(NotFound):
        code = "COUPON_NOT_FOUND"

    error = CouponNotFound("No such coupon")
    assert isinstance(error, NotFound)
    assert (error.code, NotFound.code) == ("COUPON_NOT_FOUND", "NOT_FOUND")


def test_a_rejection_by_a_limit_has_a_retry_time_if_waiting_helps() -> None:
    assert LimitExceeded("Slow down", retry_after_s=1.5).retry_after_s == 1.5
    assert LimitExceeded("Used up").retry_after_s is None


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_survives_being_copied_and_sent_to_another_process(clone) -> None:  # type: ignore[no-untyped-def]  # three signatures
    error = clone(LimitExceeded("Slow down", fields={"a": "b"}, retry_after_s=2))
    assert type(error) is LimitExceeded
    assert (error.message, error.fields, error.retry_after_s) == ("Slow down", {"a": "b"}, 2)
