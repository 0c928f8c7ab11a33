"""Errors of Stripe's library as ours, and its codes of declines.
Stripe's texts about requests go to the log only."""

import contextlib
from collections.abc import Iterator
from typing import Any

import stripe
import structlog

from ximler.billing.declines import reason
from ximler.billing.provider import ProviderUnavailable
from ximler.core.errors import Conflict, Invalid, NotFound

__all__ = ["HARD", "HIDDEN", "Declined", "KeyRefused", "errors"]

_NO_ANSWER = "The payment provider does not answer: try again in a moment"
_log = structlog.get_logger("ximler.billing")

# The card's issuer will not change its mind (docs.stripe.com/declines/codes).
HARD = frozenset(
    "account_closed card_not_supported currency_not_supported expired_card fraudulent highest_risk_level incorrect_number "
    "invalid_account invalid_expiry_month invalid_expiry_year invalid_number lost_card merchant_blacklist no_such_card "
    "pickup_card restricted_card revocation_of_all_authorizations revocation_of_authorization security_violation "
    "service_not_allowed stolen_card stop_payment_order transaction_not_allowed resource_missing "
    "payment_method_customer_decline payment_method_not_available payment_method_unexpected_state".split()
)
# Not shown to the customer, who may be the thief.
HIDDEN = frozenset(
    "fraudulent highest_risk_level lost_card merchant_blacklist pickup_card restricted_card security_violation "
    "stolen_card".split()
)


class KeyRefused(ProviderUnavailable):
    """A restricted key lacks a permission."""


class Declined(Conflict):
    code = "PAYMENT_DECLINED"


class _Rejected(Invalid):
    """Stripe refuses the request itself: a fault of the configuration, or ours. Its text is for the log."""

    code = "PAYMENT_PROVIDER_REJECTED"


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """The library's errors as ours."""
    try:
        yield
    except stripe.CardError as error:
        raise Declined(f"The payment was declined: {_words(error)}") from error
    except stripe.InvalidRequestError as error:
        gone = error.http_status == 404
        log = _log.info if gone else _log.error
        log(
            "Stripe rejected a request", request=error.request_id, code=error.code, param=error.param, reason=str(error)
        )
        if gone:
            raise NotFound("The payment provider has no such object") from error
        raise _Rejected("The payment provider rejected the request. Contact us, or try again later.") from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        _log.error("Stripe refused the key", request=error.request_id, reason=str(error))
        raise KeyRefused(_NO_ANSWER) from error
    except stripe.StripeError as error:
        kind = type(error).__name__
        _log.warning(
            "Stripe did not answer", kind=kind, status=error.http_status, code=error.code, request=error.request_id
        )
        raise ProviderUnavailable(_NO_ANSWER) from error


def _words(error: stripe.CardError) -> str:
    """Ours for a code that we know, else Stripe's `message`,
    which for card errors is written for customers."""
    given: dict[str, Any] = (error.json_body or {}).get("error") or {}
    code = str(given.get("decline_code") or error.code)
    if code in HIDDEN or not error.user_message:
        return reason(code)
    return reason(code, otherwise=error.user_message.rstrip("."))
