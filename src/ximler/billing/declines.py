"""The reasons of declined payments, in words for the customer.

The codes are Stripe's (docs.stripe.com/declines/codes) and a few of ours. Those that would help a thief are
hidden by `billing.stripe` before they are stored.
"""

__all__ = ["reason"]

_UNKNOWN = "the bank gave no reason"
_LATER = "the bank could not process it: try again later"
_REASONS = {
    "authentication_required": "the bank asks you to confirm it",
    "call_issuer": "ask your bank for the reason",
    "cancelled": "it was cancelled",
    "card_declined": _UNKNOWN,
    "card_not_supported": "the card does not support this kind of payment",
    "card_not_usable": "the card cannot be used any more: add it again",
    "card_velocity_exceeded": "the limit of the card is reached",
    "currency_not_supported": "the card does not support this currency",
    "debit_refused": "the bank returned the debit",
    "do_not_honor": _UNKNOWN,
    "expired_card": "the card has expired",
    "generic_decline": _UNKNOWN,
    "incorrect_cvc": "the security code is wrong",
    "incorrect_number": "the card number is wrong",
    "incorrect_zip": "the postal code is wrong",
    "insufficient_funds": "insufficient funds",
    "invalid_cvc": "the security code is wrong",
    "invalid_expiry_month": "the expiry date is wrong",
    "invalid_expiry_year": "the expiry date is wrong",
    "invalid_number": "the card number is wrong",
    "issuer_not_available": _LATER,
    "no_payment_method": "there is no payment method",
    "processing_error": _LATER,
    "reenter_transaction": _LATER,
    "rejected_by_the_provider": "the payment provider rejected it",
    "try_again_later": _LATER,
    "withdrawal_count_limit_exceeded": "the limit of the card is reached",
}


def reason(code: str | None, *, otherwise: str = _UNKNOWN) -> str:
    """A clause for the code of a decline; `otherwise` for one without words of ours."""
    return _REASONS.get(code or "", otherwise)
