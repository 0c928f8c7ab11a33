"""Invoices as pages and as PDF."""

from hashlib import sha256
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter

from ximler.billing import attempts, checkouts, invoices, pdf
from ximler.billing.rails import rail
from ximler.core.errors import NotFound, Unauthenticated
from ximler.core.ids import object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.conditional import matches
from ximler.http.pages import page, page_of
from ximler.http.problems import documented

__all__ = ["routes"]

_PDF = "application/pdf"


@get(
    "/v1/invoices/{file:str}",
    **signed_in(scope="billing:read"),
    tags=["billing"],
    summary="An invoice as PDF",
    media_type=_PDF,
    responses={
        200: ResponseSpec(bytes, description="The invoice", media_type=_PDF, generate_examples=False),
        304: ResponseSpec(None, description="Not modified"),
    }
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
    request: Request[Any, Any, Any],
    state: State,
) -> Response[bytes]:
    """The amounts are those of `invoice(id)` in GraphQL. Credit notes are invoices, too."""
    name, dot, kind = file.partition(".")
    if f"{dot}{kind}" != ".pdf":
        raise NotFound("Invoices have the ending .pdf")
    invoice, document = await pdf.download(state.database, caller.actor, object_id(name, "invoice"))
    tag = f'"{sha256(document).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-store"}  # programs that keep invoices compare the tag themselves
    if matches(request.headers.get("if-none-match", ""), tag):
        return Response(b"", status_code=304, headers=headers)
    headers["Content-Disposition"] = f'inline; filename="{invoice.number}.pdf"'
    return Response(document, media_type=_PDF, headers=headers)


def _sign_in(_: Request[Any, Any, Any], _error: Unauthenticated) -> Response[str]:
    text = "Sign in to your account in this browser, then open the invoice again."
    answer = page("page.html", "Sign in to see the invoice", text=text, status=401)
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _page_of(summary: str, *, scope: str, **reasons: str) -> dict[str, Any]:
    options = page_of(
        summary,
        tag="billing",
        _401="Not signed in, or the key is missing, expired or revoked",
        _403=f"The key lacks the scope {scope}, or another site sent the request",
        _404="There is no such invoice, or it is another user's",
        _422="The id is malformed",
        _429="Too many requests, or the month's calls are used up",
        _503="The database is unavailable",
        **reasons,
    )
    options["exception_handlers"] = options["exception_handlers"] | {Unauthenticated: _sign_in}
    return options


@get(
    "/invoices/{invoice:str}",
    **signed_in(scope="billing:read"),
    **_page_of("An invoice as a page", scope="billing:read"),
)
async def show_page(
    invoice: Annotated[str, PathParameter(max_length=100, description="The invoice's id")],
    caller: NamedDependency[Caller],
    state: State,
) -> Response[str]:
    """For people: the same text as the PDF, with a link to it.
    Loads nothing, and prints on paper as it is."""
    settings = state.authentication.settings
    found, content = await pdf.view(state.database, caller.actor, object_id(invoice, "invoice"))
    unpaid = found.status == "OPEN" and found.user_id == caller.actor.user_id
    title, address = content.pop("title"), f"/invoices/{found.id}"
    answer = page("invoice.html", title, **content, pdf=f"/v1{address}.pdf", pay=f"{address}/pay" if unpaid else None)
    if unpaid:  # browsers apply the policy of forms also to the payment page, where the answer leads
        policy = answer.headers["Content-Security-Policy"]
        answer.headers["Content-Security-Policy"] = policy.replace(
            "form-action 'self'", f"form-action 'self' {settings.base_url} https:"
        )
    return answer


@post(
    "/invoices/{invoice:str}/pay",
    **signed_in(scope="billing:write"),
    **_page_of(
        "Pay an invoice on the payment page",
        scope="billing:write",
        _303="Leads to the payment provider's page, or back to an invoice that is not open",
    ),
)
async def pay(
    invoice: Annotated[str, PathParameter(max_length=100, description="The invoice's id")],
    caller: NamedDependency[Caller],
    state: State,
) -> Response[str]:
    """The button of an unpaid invoice. The card that is entered there becomes the payment method, and is
    charged at once: a bank that requires authentication can ask for it, because the customer is present.
    """
    settings = state.authentication.settings
    found = await invoices.find(state.database, caller.actor, object_id(invoice, "invoice"))
    where = f"{settings.base_url}/invoices/{found.id}"
    if found.status == "OPEN":
        provider = rail(state.database, settings)
        await attempts.open_page(state.database, state.keyring, caller.actor)
        begun = await checkouts.add_method(state.database, provider, settings, caller.actor, return_url=where)
        where = begun.url or where
    return Response("", status_code=303, headers={"Location": where, "Cache-Control": "no-store"})


routes = (show, show_page, pay)
