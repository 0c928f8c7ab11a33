"""Every action that Ximler writes to the audit log. The values are stored: never change or reuse one.

A value is `source.subject.verb` in the past tense; the source is the domain that writes the entry. Values
that end in `.read`, `.listed` or `.viewed` record access instead of a change. docs/audit.md lists the actions
and is generated from this module.
"""

from enum import StrEnum
from typing import Self

__all__ = ["Action"]


class Action(StrEnum):
    """An action and its meaning: `Action.PASSWORD_CHANGED == "accounts.password.changed"`."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:  # the default is for look-ups by value
        action = str.__new__(cls, value)
        action._value_ = value
        action.meaning = meaning
        return action

    REGISTRATION_CONFIRMED = "accounts.registration.confirmed", "An account was created from a confirmation link."
    PROFILE_CHANGED = "accounts.profile.changed", "The user changed their name."
    AVATAR_CHANGED = "accounts.avatar.changed", "The user changed or removed their picture."
    NOTIFICATIONS_CHANGED = "accounts.notifications.changed", "The user changed which notifications are mailed."
    EMAIL_CHANGE_REQUESTED = "accounts.email.requested", "A change of e-mail address was requested."
    EMAIL_CHANGED = "accounts.email.changed", "The e-mail address was changed."
    EMAIL_CHANGE_CANCELLED = "accounts.email.cancelled", "A requested change of e-mail address was cancelled."
    PASSWORD_CHANGED = "accounts.password.changed", "The user changed their password."
    PASSWORD_RESET = "accounts.password.reset", "The password was replaced through a reset link."
    PASSWORD_REFUSED = "accounts.password.refused", "A wrong password was entered to confirm a sensitive change."
    SESSION_STARTED = "accounts.session.started", "The user signed in."
    SESSION_REVOKED = "accounts.session.revoked", "The user ended one of their sessions."
    SESSION_REUSED = "accounts.session.reused", "An exchanged session token was used again; the sign-in was ended."
    SESSIONS_REVOKED = "accounts.sessions.revoked", "All sessions of a user were ended."
    SIGN_IN_FAILED = "accounts.sign_in.failed", "A sign-in failed: wrong e-mail address or password."
    SIGN_IN_REFUSED = "accounts.sign_in.refused", "A sign-in was refused: throttled, locked or closed."
    CODE_REFUSED = "accounts.code.refused", "A second-factor code was refused."
    RECOVERY_CODE_USED = "accounts.recovery_code.used", "A recovery code was used to sign in."
    RECOVERY_CODES_MADE = "accounts.recovery_codes.made", "New recovery codes were generated."
    FACTOR_ENABLED = "accounts.factor.enabled", "The second factor was enabled."
    FACTOR_DISABLED = "accounts.factor.disabled", "The second factor was disabled."
    FACTOR_ATTEMPTS_EXHAUSTED = "accounts.factor.attempts_exhausted", "Too many second-factor codes were tried."
    SECRETS_RENEWED = "accounts.secrets.renewed", "Second-factor secrets were encrypted under the newest secret key."
    ACCOUNT_CLOSED = "accounts.account.closed", "The user closed their account."
    ACCOUNT_REOPENED = "accounts.account.reopened", "A closed account was reopened."
    ROLE_GRANTED = "accounts.role.granted", "An account was given a role."
    ROLE_WITHDRAWN = "accounts.role.withdrawn", "An account lost its role."
    USER_CREATED = "accounts.user.created", "An operator created an account."
    USER_VERIFIED = "accounts.user.verified", "An operator marked an e-mail address as verified."
    USER_LOCKED = "accounts.user.locked", "An operator locked an account."
    USER_UNLOCKED = "accounts.user.unlocked", "An operator unlocked an account."
    USER_VIEWED = "accounts.user.viewed", "An operator looked at an account."
    USERS_LISTED = "accounts.users.listed", "An operator listed or searched accounts."

    KEY_CREATED = "apikeys.key.created", "An API key was created."
    KEY_CHANGED = "apikeys.key.changed", "An API key's name, scopes or addresses were changed."
    KEY_ROTATED = "apikeys.key.rotated", "An API key was replaced by a new one."
    KEY_REVOKED = "apikeys.key.revoked", "An API key was revoked."

    PROJECT_CREATED = "projects.project.created", "A project was created."
    PROJECT_DELETED = "projects.project.deleted", "A project was deleted."
    PROJECT_RESTORED = "projects.project.restored", "A deleted project was restored."
    PROJECT_PURGED = "projects.project.purged", "A deleted project was removed permanently."
    PROJECT_SHARED = "projects.project.shared", "A project was shared with a person, or their role was changed."
    PROJECTS_SEARCHED = "projects.projects.searched", "An operator searched all users' projects."
    PROJECT_UNSHARED = "projects.project.unshared", "A person's access to a project was revoked, or given up."
    LINK_CREATED = "projects.link.created", "A public link to a project was created."
    LINK_REVOKED = "projects.link.revoked", "A public link to a project was revoked."

    OVERRIDE_SET = "metering.override.set", "An operator overrode a user's limits."
    OVERRIDE_ENDED = "metering.override.ended", "An operator ended an override of limits."
    USAGE_IMPORTED = "metering.usage.imported", "Usage events were imported."
    USAGE_FORGIVEN = "metering.usage.forgiven", "An operator gave forfeited units back."
    USAGE_REBUILT = "metering.usage.rebuilt", "Quotas or gauges were rebuilt from the ledger."

    PLAN_CREATED = "billing.plan.created", "An operator created a plan."
    PLAN_EDITED = "billing.plan.edited", "An operator changed a plan, or put it on offer again."
    PLAN_RETIRED = "billing.plan.retired", "An operator took a plan off the offer."
    COUPON_CREATED = "billing.coupon.created", "An operator created a coupon."
    COUPON_CHANGED = "billing.coupon.changed", "An operator changed a coupon."
    COUPON_ENDED = "billing.coupon.ended", "An operator ended a coupon."
    COUPON_APPLIED = "billing.coupon.applied", "The user put a coupon on a running subscription."
    PLAN_REPRICED = "billing.plan.repriced", "An operator moved a plan's subscribers to its new price."
    SUBSCRIPTION_EXTENDED = "billing.subscription.extended", "An operator moved the end of a period or a trial."
    INVOICE_MARKED_PAID = "billing.invoice.marked_paid", "An operator recorded that an invoice was paid elsewhere."
    SUBSCRIPTION_STARTED = "billing.subscription.started", "A subscription began, paid or on trial."
    SUBSCRIPTION_CANCELLED = "billing.subscription.cancelled", "The user cancelled at the end of the period."
    SUBSCRIPTION_RESUMED = "billing.subscription.resumed", "The user took a cancellation back."
    SUBSCRIPTION_ENDED = "billing.subscription.ended", "A subscription ended."
    PAYMENT_REFUNDED = "billing.payment.refunded", "An operator refunded a payment, wholly or in part."
    PAYMENT_METHOD_CHANGED = "billing.method.changed", "Another payment method became the default."
    PAYMENT_METHOD_ADDED = "billing.method.added", "The user added a payment method that is not the default."
    BILLING_DETAILS_CHANGED = "billing.details.changed", "The user changed the billing details."
    PAYMENT_METHOD_REMOVED = "billing.method.removed", "The user removed the payment method."
    CREDIT_GRANTED = "billing.credit.granted", "An operator changed a user's credit balance."
    PAYMENT_DISPUTED = "billing.payment.disputed", "A dispute of a payment was opened or decided."
    PLAN_CHANGE_REQUESTED = (
        "billing.plan.change_requested",
        "The user asked for another plan, now or at the end of the period.",
    )
    PLAN_CHANGE_WITHDRAWN = "billing.plan.change_withdrawn", "The user took back a change of plan that was pending."
    PLAN_CHANGED = "billing.plan.changed", "A subscription changed to another plan."
    TRIAL_REPEATED = (
        "billing.trial.repeated",
        "A trial at Stripe began with a payment method that had one before.",
    )

    DATA_EXPORTED = "privacy.data.exported", "An archive of a user's data was downloaded."
    ACCOUNT_ERASED = "privacy.account.erased", "A closed account was anonymised."

    LOG_READ = "audit.log.read", "An operator read or exported entries of the audit log."
    LOG_PRUNED = "audit.log.pruned", "Sealed entries were removed by age."
    CHAIN_FOUNDED = "audit.chain.founded", "A chain of seals was begun over older entries, or after seals were lost."
    PERSON_ERASED = "audit.person.erased", "Personal values of a user were erased from the audit log."

    REQUEST_REFUSED = "graphql.request.refused", "A GraphQL request was refused by its limits or scopes."
