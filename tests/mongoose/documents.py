"""The ten documents, by the name of their model: as a Mongoose application writes them, and as Ximler does.

And what either side should see of the other's: `expected` by the models' own account of themselves
(`describe`), `seen` of what Ximler read.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from bson import Binary, Decimal128, Int64, ObjectId, Regex

from ximler.database import Database
from ximler.database.validators import validator
from ximler.schema import SPECIFIED
from ximler.schema.api_key import ApiKey
from ximler.schema.audit_log import AuditLog
from ximler.schema.coupon import Coupon
from ximler.schema.document import Collection, Document
from ximler.schema.notification import Notification
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.project import Project
from ximler.schema.subscription import Subscription
from ximler.schema.usage import Usage
from ximler.schema.user import EmailNotifications, NotificationSettings, PushNotifications, User

__all__ = [
    "COLLECTIONS", "DAY", "LATER", "MODELS", "NESTED", "at", "expected", "our_full", "our_minimal", "placed", "refused",
    "seen", "their_full", "their_minimal",
]  # fmt: skip

COLLECTIONS: dict[str, Collection[Any]] = {collection.document.__name__: collection for collection in SPECIFIED}
MODELS = tuple(COLLECTIONS)

DAY = datetime(2026, 3, 4, 5, 6, 7, 891000, tzinfo=UTC)
LATER = datetime(2027, 3, 4, 5, 6, 7, 89000, tzinfo=UTC)
NESTED = {
    "theme": "dark",
    "zoom": 1.25,
    "grid": {"on": True, "size": 8, "none": None},
    "shapes": [{"x": 1, "y": -2.5, "tags": ["a", None, {}]}, [], 5_000_000_000],
    "at": DAY,
    "by": ObjectId("65e000000000000000000001"),
}

Field = dict[str, Any]  # of one path, as `describe` tells it


def expected(fields: list[Field], document: dict[str, Any]) -> dict[str, Any]:
    """By path, what a reader must see of a stored document:
    its value, or the models' default where it is missing or null."""
    seen = {}
    for field in fields:
        value = at(document, field["path"])
        if value is None:
            value = {"Array": [], "Mixed": {}}.get(field["type"], field["default"])
        seen[field["path"]] = value
    return seen


def seen(fields: list[Field], document: Document) -> dict[str, Any]:
    """By path, what Ximler has read."""
    kinds = (ObjectId, datetime, Decimal, bytes, UUID, Decimal128, Binary, Regex, Int64)
    raw = msgspec.to_builtins(document, builtin_types=kinds)
    return {field["path"]: at(raw, field["path"]) for field in fields}


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def placed(values: dict[str, Any]) -> dict[str, Any]:
    """A document from its values by path."""
    document: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return document


async def refused(database: Database) -> list[dict[str, Any]]:
    """Every document of the ten collections that its validator would refuse."""
    return [
        document
        for collection in SPECIFIED
        for document in await database[collection].aggregate([{"$match": {"$nor": [validator(collection)]}}])
    ]


def their_minimal() -> dict[str, dict[str, Any]]:
    """What the models require and no more."""
    user = ObjectId()
    return {
        "User": {"name": "Ada", "email": f"{ObjectId()}@example.org", "password": "$2b$10$hash"},
        "Plan": {
            "id": f"plan-{ObjectId()}",
            "name": "Plan",
            "price": 9.99,
            "interval": "MONTH",
            "limits": {"projects": 1, "storage": 0.5, "apiCalls": 10},
        },
        "Subscription": {"userId": user, "planId": "pro", "status": "ACTIVE", "startDate": DAY, "price": 29},
        "Payment": {"userId": user, "amount": 29.99, "status": "PAID"},
        "Usage": {"userId": user, "resourceType": "apiCalls", "amount": 7, "periodStart": DAY, "periodEnd": LATER},
        "Project": {"userId": user, "name": "Sketch"},
        "ApiKey": {"userId": user, "name": "CI", "keyHash": "0" * 64},
        "Notification": {"userId": user, "type": "SYSTEM", "title": "Hello", "message": "You are in."},
        "Coupon": {
            "code": f"C{ObjectId()}".upper(),
            "name": "Coupon",
            "type": "FIXED",
            "value": 4.5,
            "validFrom": DAY,
            "validUntil": LATER,
        },
        "AuditLog": {"action": "signIn", "resource": "user"},
    }


def their_full() -> dict[str, dict[str, Any]]:
    """Every field of the models, none at its default."""
    more: dict[str, dict[str, Any]] = {
        "User": {
            "avatar": "https://example.org/a.png",
            "emailVerified": True,
            "emailVerificationToken": "t1",
            "passwordResetToken": "t2",
            "passwordResetExpires": DAY,
            "lastLogin": DAY,
            "stripeCustomerId": "cus_1",
            "notificationSettings": {
                "email": {"productUpdates": False, "billingAlerts": False, "securityAlerts": False},
                "push": {"enabled": True, "productUpdates": False},
            },
            "deletedAt": LATER,
        },
        "Plan": {
            "description": "All of it",
            "currency": "EUR",
            "interval": "YEAR",
            "features": ["one", "two"],
            "limits": {"projects": -1, "storage": 2.5, "apiCalls": 5_000_000_000},
            "stripePriceId": "price_1",
            "active": False,
        },
        "Subscription": {
            "status": "PAST_DUE",
            "endDate": LATER,
            "autoRenew": False,
            "price": 29.99,
            "currency": "JPY",
            "stripeSubscriptionId": "sub_1",
            "stripeCustomerId": "cus_1",
        },
        "Payment": {
            "subscriptionId": ObjectId(),
            "amount": 5_000_000_000,
            "currency": "KWD",
            "status": "REFUNDED",
            "description": "A payment",
            "stripePaymentIntentId": "pi_1",
            "stripeInvoiceId": "in_1",
            "invoiceUrl": "https://example.org/in_1",
            "paidAt": DAY,
        },
        "Usage": {"resourceType": "storage", "amount": -5_000_000_000, "metadata": NESTED},
        "Project": {
            "description": "A drawing",
            "settings": NESTED,
            "canvasData": {"layers": [NESTED]},
            "storageSize": 5_000_000_000,
            "deletedAt": LATER,
        },
        "ApiKey": {"permissions": ["read", "write"], "lastUsed": DAY, "expiresAt": LATER, "revokedAt": LATER},
        "Notification": {"type": "BILLING", "readAt": DAY, "metadata": NESTED},
        "Coupon": {
            "description": "A discount",
            "type": "PERCENTAGE",
            "value": 12.5,
            "currency": "EUR",
            "maxUses": 5_000_000_000,
            "usedCount": 3,
            "applicablePlans": ["pro"],
            "active": False,
        },
        "AuditLog": {
            "userId": ObjectId(),
            "resourceId": "65e0",
            "metadata": NESTED,
            "ipAddress": "2001:db8::1",
            "userAgent": "curl/8",
        },
    }
    return {model: {**minimal, **more[model]} for model, minimal in their_minimal().items()}


def our_minimal() -> dict[str, Document]:
    user = ObjectId()
    return {
        "User": User(name="Ada", email=f"{ObjectId()}@example.org", password="$argon2id$"),
        "Plan": Plan(
            id=f"plan-{ObjectId()}",
            name="Plan",
            price=9.99,
            interval="MONTH",
            limits=PlanLimits(projects=1, storage=0.5, api_calls=10),
        ),
        "Subscription": Subscription(user_id=user, plan_id="pro", status="ACTIVE", start_date=DAY, price=29),
        "Payment": Payment(user_id=user, amount=29.99, status="PAID"),
        "Usage": Usage(user_id=user, resource_type="apiCalls", amount=7, period_start=DAY, period_end=LATER),
        "Project": Project(user_id=user, name="Sketch"),
        "ApiKey": ApiKey(user_id=user, name="CI", key_hash="0" * 64),
        "Notification": Notification(user_id=user, type="SYSTEM", title="Hello", message="You are in."),
        "Coupon": Coupon(
            code=f"C{ObjectId()}".upper(), name="Coupon", type="FIXED", value=4.5, valid_from=DAY, valid_until=LATER
        ),
        "AuditLog": AuditLog(action="signIn", resource="user"),
    }


def our_full() -> dict[str, Document]:
    user = ObjectId()
    return {
        "User": User(
            name="Grace",
            email=f"{ObjectId()}@example.org",
            password="$argon2id$",
            avatar="https://example.org/a.png",
            email_verified=True,
            email_verification_token="t1",
            password_reset_token="t2",
            password_reset_expires=DAY,
            last_login=DAY,
            stripe_customer_id="cus_1",
            notification_settings=NotificationSettings(
                email=EmailNotifications(product_updates=False, billing_alerts=False, security_alerts=False),
                push=PushNotifications(enabled=True, product_updates=False),
            ),
            deleted_at=LATER,
            created_at=DAY,
            updated_at=LATER,
        ),
        "Plan": Plan(
            id=f"plan-{ObjectId()}",
            name="Plan",
            description="All of it",
            price=29,
            currency="EUR",
            interval="YEAR",
            features=["one", "two"],
            limits=PlanLimits(projects=-1, storage=2.5, api_calls=5_000_000_000),
            stripe_price_id="price_1",
            active=False,
        ),
        "Subscription": Subscription(
            user_id=user,
            plan_id="pro",
            status="PAST_DUE",
            start_date=DAY,
            end_date=LATER,
            auto_renew=False,
            price=29.99,
            currency="JPY",
            stripe_subscription_id="sub_1",
            stripe_customer_id="cus_1",
        ),
        "Payment": Payment(
            user_id=user,
            subscription_id=ObjectId(),
            amount=5_000_000_000,
            currency="KWD",
            status="REFUNDED",
            description="A payment",
            stripe_payment_intent_id="pi_1",
            stripe_invoice_id="in_1",
            invoice_url="https://example.org/in_1",
            paid_at=DAY,
        ),
        "Usage": Usage(
            user_id=user,
            resource_type="storage",
            amount=-5_000_000_000,
            period_start=DAY,
            period_end=LATER,
            metadata=NESTED,
        ),
        "Project": Project(
            user_id=user,
            name="Sketch",
            description="A drawing",
            settings=NESTED,
            canvas_data={"layers": [NESTED]},
            storage_size=5_000_000_000,
            deleted_at=LATER,
            search_terms=["a", "drawing", "sketch"],
            search_keys=[-5, 7],
        ),
        "ApiKey": ApiKey(
            user_id=user,
            name="CI",
            key_hash="0" * 64,
            permissions=["read", "write"],
            last_used=DAY,
            expires_at=LATER,
            revoked_at=LATER,
        ),
        "Notification": Notification(
            user_id=user, type="BILLING", title="Paid", message="Thank you.", read_at=DAY, metadata=NESTED
        ),
        "Coupon": Coupon(
            code=f"C{ObjectId()}".upper(),
            name="Coupon",
            description="A discount",
            type="PERCENTAGE",
            value=12.5,
            currency="EUR",
            max_uses=5_000_000_000,
            used_count=3,
            valid_from=DAY,
            valid_until=LATER,
            applicable_plans=["pro"],
            active=False,
        ),
        "AuditLog": AuditLog(
            user_id=user,
            action="signIn",
            resource="user",
            resource_id="65e0",
            metadata=NESTED,
            ip_address="2001:db8::1",
            user_agent="curl/8",
        ),
    }
