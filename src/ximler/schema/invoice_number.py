"""`invoicenumbers`: the last invoice number of each year. Private to billing."""

from msgspec import field

from ximler.schema.document import Collection, Document, ShardKey

__all__ = ["INVOICE_NUMBERS", "InvoiceNumber"]


class InvoiceNumber(Document, kw_only=True):
    year: int = field(name="_id")
    last: int = 0


INVOICE_NUMBERS = Collection(
    name="invoicenumbers",
    document=InvoiceNumber,
    purpose="The last invoice number of each year.",
    owner="billing",
    shard_key=ShardKey((), "one document a year"),
)
