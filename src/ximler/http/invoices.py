"""Invoices as PDF."""

from typing import Annotated

from litestar import Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter

from ximler.billing import pdf
from ximler.core.errors import NotFound
from ximler.core.ids import object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.problems import documented

__all__ = ["routes"]

_PDF = "application/pdf"


@get(
    "/v1/invoices/{file:str}",
    **signed_in(scope="billing:read"),
    tags=["billing"],
    summary="An invoice as PDF",
    media_type=_PDF,
    responses={200: ResponseSpec(bytes, description="The invoice", media_type=_PDF, generate_examples=False)}
    | documented(
        _400="The request cannot be read",
        _401="Not signed in, or the key is missing, expired or revoked",
        _403="The key lacks the scope billing:read",
        _404="There is no such invoice, or it is another user's",
        _422="The id is malformed",
        _429="Too many requests, or the month's calls are used up",
        _503="The database is unavailable",
    ),
)
async def show(
    file: Annotated[str, PathParameter(max_length=100, description="The invoice's id, followed by .pdf")],
    caller: NamedDependency[Caller],
    state: State,
) -> Response[bytes]:
    """The amounts are those of `invoice(id)` in GraphQL. Credit notes are invoices, too."""
    name, dot, kind = file.partition(".")
    if f"{dot}{kind}" != ".pdf":
        raise NotFound("Invoices have the ending .pdf")
    settings = state.authentication.settings
    invoice, document = await pdf.download(state.database, settings, caller.actor, object_id(name, "invoice"))
    headers = {"Content-Disposition": f'inline; filename="{invoice.number}.pdf"', "Cache-Control": "no-store"}
    return Response(document, media_type=_PDF, headers=headers)


routes = (show,)
