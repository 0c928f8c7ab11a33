"""Events from Stripe. They are verified and stored here, and applied by background work."""

from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.exceptions import ClientException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Schema

from ximler.billing import events
from ximler.billing.rails import rail
from ximler.core.errors import Invalid, NotFound, Unauthenticated
from ximler.http.bodies import body_of
from ximler.http.problems import documented

__all__ = ["routes"]

_MAX_BODY = 2_000_000  # an event holds one object; the largest are invoices of hundreds of lines


@post(
    "/webhooks/stripe",
    tags=["operation"],
    summary="Events of Stripe",
    status_code=200,
    opt={"api_calls": None},
    request_max_body_size=_MAX_BODY,
    operation_class=body_of("An event", **{"application/json": Schema(type=OpenAPIType.OBJECT)}),
    responses={
        200: ResponseSpec(None, description="Stored, stored before, or of no concern", generate_examples=False),
        **documented(
            _400="The signature is wrong or older than five minutes, or the body is not an event",
            _404="Payments are not Stripe's",
            _413="The body is too long",
            _415="The body is compressed",
            _503="The database is unavailable: send it again",
        ),
    },
)
async def receive(request: Request[Any, Any, Any], state: State) -> Response[None]:
    """The header `Stripe-Signature` is verified on the raw body, under any of
    `XIMLER_STRIPE_WEBHOOK_SECRETS`. Idempotent."""
    settings = state.authentication.settings
    if settings.stripe_key is None:
        raise NotFound("Payments are not Stripe's: XIMLER_STRIPE_KEY is not set")
    signature = request.headers.get("stripe-signature", "")
    try:
        await events.receive(state.database, rail(state.database, settings), await request.body(), signature)
    except (Invalid, Unauthenticated) as error:
        raise ClientException(error.message) from None
    return Response(None, status_code=200)


routes = (receive,)
