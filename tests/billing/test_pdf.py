"""Invoices as PDF: the figures that were stored, and nothing of a user's text acts as markup."""

import io
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from ximler.billing.pdf import render
from ximler.schema.invoice import Invoice


def invoice(**values: Any) -> Invoice:
    day = datetime(2027, 1, 31, 12, tzinfo=UTC)
    plan = {
        "kind": "PLAN",
        "description": "Pro",
        "amount_minor": 2900,
        "start": day,
        "end": day.replace(month=3, day=1),
    }
    discount = {"kind": "DISCOUNT", "description": "WELCOME20", "amount_minor": -580}
    credit = {"kind": "CREDIT", "description": "From the credit balance", "amount_minor": -500}
    usual: dict[str, Any] = {
        "key": "k", "user_id": ObjectId(), "subscription_id": ObjectId(), "kind": "CHECKOUT", "status": "PAID",
        "year": 2027, "serial": 17, "issued_at": day, "paid_at": day, "currency": "USD", "plan_id": "pro",
        "lines": [plan, discount, credit], "total_minor": 2320, "due_minor": 1820, "balance_before_minor": 500,
        "buyer_name": "Ada", "buyer_email": "ada@example.com",
    }  # fmt: skip
    return Invoice(**usual | values)


def text_of(document: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(document)).pages)


def test_the_figures_are_those_of_the_invoice() -> None:
    text = text_of(render(invoice(seller="Acme Ltd; 1 High Street")))
    for line in (
        "Acme Ltd", "1 High Street", "Invoice 2027-000017", "Issued 31 January 2027", "31 January 2027 to 1 March 2027",
        "29.00 USD", "WELCOME20 -5.80 USD", "From the credit balance -5.00 USD", "Total 23.20 USD", "Paid 18.20 USD",
    ):  # fmt: skip
        assert line in text, (line, text)


def test_a_credit_note_names_the_invoice_that_it_corrects() -> None:
    lines = [{"kind": "REFUND", "description": "Refund for pro", "amount_minor": -1000}]
    amounts = {"lines": lines, "total_minor": -1000, "due_minor": -1000, "balance_before_minor": 0}
    note = invoice(kind="CREDIT_NOTE", serial=18, status="VOID", **amounts)
    text = text_of(render(note, corrects=invoice()))
    for line in ("Credit note 2027-000018", "Corrects 2027-000017", "Refunded 10.00 USD", "Void"):
        assert line in text, (line, text)


def test_the_same_invoice_gives_the_same_bytes_on_as_many_pages_as_it_needs() -> None:
    long = invoice(lines=[{"kind": "PLAN", "description": f"Line {n}", "amount_minor": 1} for n in range(90)])
    assert render(long) == render(long)
    assert "Line 89" in text_of(render(long))


def test_text_of_users_is_no_markup() -> None:
    for name in ('#eval("1+1")', "*bold* _x_ $x^2$ = h", '\\#read("/etc/passwd")', '"]#panic()', "Zoë Łukasz Ωmega"):
        assert name in text_of(render(invoice(buyer_name=name)))


@settings(max_examples=10, deadline=None)
@given(st.text(max_size=40))
def test_any_name_can_be_shown(name: str) -> None:
    assert "18.20 USD" in text_of(render(invoice(buyer_name=name)))
