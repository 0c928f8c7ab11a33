"""Invoices as documents, rendered from the stored invoice alone: the text of page and PDF, and the PDF.

The built-in font has Latin, Greek and Cyrillic; other letters use the system's fonts, or show as boxes.
"""

import asyncio
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from bson import ObjectId

from ximler.billing import invoices, statement
from ximler.billing.invoices import Invoice
from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.money import Money
from ximler.database import Database

__all__ = ["content", "download", "render", "view"]

_DAY = "%-d %B %Y"
_STATUS = {"OPEN": "Not paid yet.", "VOID": "Void: this is not to be paid."}


async def download(database: Database, actor: Actor, invoice_id: ObjectId) -> tuple[Invoice, bytes]:
    """The actor's invoice, and its PDF. Raises NotFound. One command, two for a credit note.

    Operators also find the invoices of other users; audited.
    """
    found, corrected = await _find(database, actor, invoice_id)
    return found, await asyncio.to_thread(render, found, corrects=corrected)


async def view(database: Database, actor: Actor, invoice_id: ObjectId) -> tuple[Invoice, dict[str, Any]]:
    """The same invoice, and its text for a page."""
    found, corrected = await _find(database, actor, invoice_id)
    return found, content(found, corrects=corrected)


async def _find(database: Database, actor: Actor, invoice_id: ObjectId) -> tuple[Invoice, Invoice | None]:
    try:
        found = await invoices.find(database, actor, invoice_id)
    except NotFound:
        if actor.kind != "operator":
            raise
        found = await statement.invoice(database, actor, invoice_id)
    owner = msgspec.structs.replace(actor, user_id=found.user_id)
    return found, await invoices.find(database, owner, found.corrects_id) if found.corrects_id else None


def render(invoice: Invoice, *, corrects: Invoice | None = None) -> bytes:
    """The PDF, in about 10 ms; the first of a process takes 0.3 s. The same invoice gives the same bytes."""
    import typst  # large, so only processes that render load it

    data = msgspec.json.encode(content(invoice, corrects=corrects)).decode()
    made: Any = typst.compile(_template(), format="pdf", sys_inputs={"data": data}, font_paths=_fonts(), timestamp=0)
    return bytes(made)


@cache
def _template() -> bytes:
    return files("ximler.billing").joinpath("invoice.typ").read_bytes()


@cache
def _fonts() -> Any:
    import typst

    return typst.Fonts()


def content(invoice: Invoice, *, corrects: Invoice | None) -> dict[str, Any]:
    """Everything that a document of the invoice shows, as text."""

    def money(minor: int) -> str:
        return str(Money(minor, invoice.currency))

    note = invoice.kind == "CREDIT_NOTE"
    facts = [("Number", str(invoice.number))]
    facts += [
        (name, f"{day:{_DAY}}") for name, day in (("Issued", invoice.issued_at), ("Paid", invoice.paid_at)) if day
    ]
    if corrects is not None:
        facts.append(("Corrects", str(corrects.number)))
    totals = [("Total", money(invoice.total_minor))] if invoice.total_minor != invoice.due_minor else []
    if invoice.tax_minor:
        totals.insert(0, ("of which tax", money(invoice.tax_minor)))
    paid = invoice.status == "PAID" and invoice.due_minor
    due = ("Refunded", money(-invoice.due_minor)) if note else ("Paid" if paid else "Due", money(invoice.due_minor))
    notes = [_STATUS[invoice.status]] if invoice.status in _STATUS else []
    if invoice.balance_after_minor < 0:
        notes.append(f"{money(-invoice.balance_after_minor)} is carried over to the next invoice.")
    elif invoice.balance_after_minor:
        notes.append(f"Credit balance afterwards: {money(invoice.balance_after_minor)}.")
    return {
        "title": f"{'Credit note' if note else 'Invoice'} {invoice.number}",
        "seller": [line.strip() for line in invoice.seller.split(";")],
        "buyer": _buyer(invoice),
        "addressee": "Billed to",
        "facts": facts,
        "lines": [
            {
                "description": f"Discount {line['description']}" if _discount(line) else line["description"],
                "period": None if _discount(line) else _period(line.get("start"), line.get("end")),
                "amount": money(line["amount_minor"]) + (" (included)" if line.get("included") else ""),
            }
            for line in invoice.lines
        ],
        "totals": totals,
        "due": due,
        "notes": notes,
    }


def _discount(line: dict[str, Any]) -> bool:
    """Its description is the coupon's code, and its period that of the line above."""
    return bool(line["kind"] == "DISCOUNT")


def _buyer(invoice: Invoice) -> list[str]:
    address = (invoice.buyer_address or "").splitlines()
    vat_id = f"VAT ID {invoice.buyer_vat_id}" if invoice.buyer_vat_id else None
    lines = [invoice.buyer_name, *address, invoice.buyer_country, vat_id, invoice.buyer_email]
    return [line for line in lines if line]


def _period(start: datetime | None, end: datetime | None) -> str | None:
    """The last day is in the period: the next one begins at `end`."""
    if start is None or end is None:
        return None
    return f"{start:{_DAY}} to {end - timedelta(seconds=1):{_DAY}}"
