"""The map of the database: one module a collection. No I/O.

`CATALOGUE` lists every collection; `docs/schema.md` is generated from it. The first ten are the specification's; the
others are private to their owner.
"""

from typing import Any

from ximler.schema.api_key import API_KEYS
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.coupon import COUPONS
from ximler.schema.credential import CREDENTIALS
from ximler.schema.document import Collection
from ximler.schema.email_change import EMAIL_CHANGES
from ximler.schema.entitlement import ENTITLEMENTS
from ximler.schema.gauge import GAUGES
from ximler.schema.job import OUTBOX
from ximler.schema.meta import META
from ximler.schema.notification import NOTIFICATIONS
from ximler.schema.payment import PAYMENTS
from ximler.schema.plan import PLANS
from ximler.schema.project import PROJECTS
from ximler.schema.quota import QUOTAS
from ximler.schema.receipt import RECEIPTS
from ximler.schema.refusal import REFUSALS
from ximler.schema.registration import REGISTRATIONS
from ximler.schema.reply import REPLIES
from ximler.schema.seal import SEALS
from ximler.schema.session import SESSIONS
from ximler.schema.subscription import SUBSCRIPTIONS
from ximler.schema.throttle import THROTTLES
from ximler.schema.usage import USAGE
from ximler.schema.usage_batch import USAGE_BATCHES, USAGE_SETTLEMENTS
from ximler.schema.usage_event import USAGE_EVENTS
from ximler.schema.user import USERS

__all__ = ["CATALOGUE", "SPECIFIED"]

SPECIFIED: tuple[Collection[Any], ...] = (
    USERS, PLANS, SUBSCRIPTIONS, PAYMENTS, USAGE, PROJECTS, API_KEYS, NOTIFICATIONS, COUPONS, AUDIT_LOGS,
)  # fmt: skip
CATALOGUE: tuple[Collection[Any], ...] = (
    *SPECIFIED,
    SESSIONS,
    REGISTRATIONS,
    CREDENTIALS,
    EMAIL_CHANGES,
    GAUGES,
    OUTBOX,
    META,
    SEALS,
    ENTITLEMENTS,
    QUOTAS,
    THROTTLES,
    REFUSALS,
    REPLIES,
    USAGE_EVENTS,
    USAGE_BATCHES,
    USAGE_SETTLEMENTS,
    RECEIPTS,
)
