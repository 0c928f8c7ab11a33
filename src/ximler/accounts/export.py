"""The part of a user's data export that accounts own. It contains no secrets."""

from typing import Any

from bson import ObjectId

from ximler.database import Database
from ximler.schema.credential import CREDENTIALS
from ximler.schema.session import SESSIONS

__all__ = ["account"]


async def account(database: Database, user_id: ObjectId) -> dict[str, Any]:
    """Profile, second factor and sign-ins. Raises NotFound."""
    user = await database.users.get(user_id)
    credential = await database[CREDENTIALS].find_one({"_id": user_id})
    sessions = await database[SESSIONS].find({"userId": user_id})
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "emailVerified": user.email_verified,
        "avatar": user.avatar,
        "lastLogin": user.last_login,
        "stripeCustomerId": user.stripe_customer_id,
        "notificationSettings": user.notification_settings,
        "createdAt": user.created_at,
        "updatedAt": user.updated_at,
        "role": credential.role if credential else None,
        "secondFactorSince": credential.totp_confirmed_at if credential else None,
        "places": credential.places if credential else [],
        "browsers": credential.browsers if credential else [],
        "sessions": [
            {
                "address": session.address,
                "userAgent": session.user_agent,
                "place": session.place,
                "createdAt": session.created_at,
                "expiresAt": session.expires_at,
            }
            for session in sessions
        ],
    }
