"""The root fields of queries and mutations, and what callers without access get from each."""

import msgspec
from tests.serving import PASSWORD

__all__ = ["FIELDS", "MARK", "Field"]

MARK = "Xanadu"  # in everything that is the victim's


class Field(msgspec.Struct, kw_only=True):
    """`arguments` are GraphQL literals in which `{project}` and the like are the victim's; each set of them
    is tried.

    `anonymous` and `stranger` (another signed-in user) have the error's code, or None if they are permitted;
    `changes` names the collections that such a call may write, where nothing of the victim's may change all
    the same.
    """

    arguments: tuple[str, ...] = ("",)
    anonymous: str | None = "UNAUTHENTICATED"
    stranger: str | None
    changes: frozenset[str] = frozenset()


_SPAN = 'from: "2026-01-01T00:00:00Z", to: "2026-01-09T00:00:00Z"'

_VERSION = 'projectId: "{project}", id: "{version}"'

FIELDS = {
    "Query.me": Field(stranger=None),
    "Query.plans": Field(anonymous=None, stranger=None),
    "Query.checkout": Field(arguments=('id: "{checkout}"',), stranger="NOT_FOUND"),
    "Query.previewChange": Field(arguments=('planId: "pro"',), stranger="NOT_FOUND"),
    "Query.coupon": Field(arguments=('code: "WELCOME20", planId: "pro"',), stranger=None),
    "Query.invoices": Field(arguments=("", 'after: "{cursor}"'), stranger=None),
    "Query.invoice": Field(arguments=('id: "{invoice}"', 'id: "{user_id}"'), stranger="NOT_FOUND"),
    "Query.payments": Field(arguments=("", 'after: "{cursor}"'), stranger=None),
    "Query.creditBalance": Field(stranger=None),
    "Query.paymentMethods": Field(stranger=None),
    "Mutation.addPaymentMethod": Field(arguments=('returnUrl: "http://localhost/back"',), stranger="NOT_FOUND"),
    "Mutation.payInvoice": Field(arguments=('id: "{invoice}"', 'id: "{user_id}"'), stranger="NOT_FOUND"),
    "Mutation.startCheckout": Field(
        arguments=('planId: "pro", returnUrl: "http://localhost/back"',),
        stranger=None,
        changes=frozenset({"billingaccounts", "checkouts", "sandboxobjects"}),
    ),
    "Mutation.changePlan": Field(arguments=('planId: "enterprise"',), stranger="NOT_FOUND"),
    "Mutation.cancelPendingChange": Field(stranger="CONFLICT"),
    "Mutation.cancelSubscription": Field(arguments=("", "when: NOW"), stranger="NOT_FOUND"),
    "Mutation.resumeSubscription": Field(stranger="NOT_FOUND"),
    "Query.users": Field(arguments=("", 'search: "{email}"', 'search: "{user_id}"'), stranger="FORBIDDEN"),
    "Query.allProjects": Field(arguments=(f'search: "{MARK}"',), stranger="FORBIDDEN"),
    "Query.user": Field(arguments=('id: "{user_id}"',), stranger="FORBIDDEN"),
    "Mutation.verifyUser": Field(arguments=('id: "{user_id}"',), stranger="FORBIDDEN"),
    "Mutation.lockUser": Field(arguments=('id: "{user_id}", reason: "r"',), stranger="FORBIDDEN"),
    "Mutation.unlockUser": Field(arguments=('id: "{user_id}"',), stranger="FORBIDDEN"),
    "Mutation.removeSecondFactor": Field(arguments=('id: "{user_id}"',), stranger="FORBIDDEN"),
    "Mutation.revokeUserSessions": Field(arguments=('id: "{user_id}"',), stranger="FORBIDDEN"),
    "Query.userBilling": Field(arguments=('userId: "{user_id}"',), stranger="FORBIDDEN"),
    "Query.coupons": Field(arguments=("", "active: true"), stranger="FORBIDDEN"),
    "Mutation.refundPayment": Field(
        arguments=('input: {userId: "{user_id}", paymentId: "{user_id}", reason: "r"}',), stranger="FORBIDDEN"
    ),
    "Mutation.grantCredit": Field(
        arguments=('input: {userId: "{user_id}", amountMinor: 1, currency: "USD", reason: "r"}',), stranger="FORBIDDEN"
    ),
    "Mutation.applyCoupon": Field(arguments=('code: "WELCOME20"',), stranger="NOT_FOUND"),
    "Mutation.setDefaultPaymentMethod": Field(arguments=('id: "pm_4242424242424242"',), stranger="NOT_FOUND"),
    "Mutation.removePaymentMethod": Field(arguments=('id: "pm_4242424242424242"',), stranger="NOT_FOUND"),
    "Query.upcomingInvoice": Field(stranger=None),
    "Query.billingDetails": Field(stranger=None),
    "Mutation.updateBillingDetails": Field(
        arguments=('input: {name: "M"}',), stranger=None, changes=frozenset({"billingaccounts", "auditlogs"})
    ),
    "Mutation.extendSubscription": Field(
        arguments=('input: {userId: "{user_id}", until: "2999-01-01T00:00:00Z", reason: "r"}',), stranger="FORBIDDEN"
    ),
    "Mutation.markInvoicePaid": Field(
        arguments=('input: {userId: "{user_id}", invoiceId: "{invoice}", method: "m", reason: "r"}',),
        stranger="FORBIDDEN",
    ),
    "Mutation.repricePlan": Field(arguments=('id: "pro"', 'id: "pro", dryRun: false'), stranger="FORBIDDEN"),
    "Query.reports": Field(stranger="FORBIDDEN"),
    "Query.planCatalogue": Field(stranger="FORBIDDEN"),
    "Mutation.createPlan": Field(
        arguments=(
            'input: {id: "mine", name: "M", price: 0, interval: MONTH, limits: {projects: -1, storage: -1, apiCalls: -1}}',
        ),
        stranger="FORBIDDEN",
    ),
    "Mutation.editPlan": Field(arguments=('id: "pro", input: {price: 0}',), stranger="FORBIDDEN"),
    "Mutation.retirePlan": Field(arguments=('id: "pro"',), stranger="FORBIDDEN"),
    "Mutation.createCoupon": Field(
        arguments=('input: {code: "FREE", type: PERCENTAGE, value: 99, validUntil: "2999-01-01T00:00:00Z"}',),
        stranger="FORBIDDEN",
    ),
    "Mutation.editCoupon": Field(arguments=('code: "WELCOME20", input: {value: 99}',), stranger="FORBIDDEN"),
    "Mutation.endCoupon": Field(arguments=('code: "WELCOME20"',), stranger="FORBIDDEN"),
    "Query.usage": Field(stranger=None),
    "Query.quota": Field(arguments=('resource: apiCalls, userId: "{user_id}"',), stranger="NOT_FOUND"),
    "Query.usageSeries": Field(
        arguments=(f'resource: apiCalls, {_SPAN}, by: DAY, userId: "{{user_id}}"',), stranger="NOT_FOUND"
    ),
    "Query.topConsumers": Field(arguments=(f"resource: apiCalls, {_SPAN}",), stranger="FORBIDDEN"),
    "Mutation.recordUsage": Field(
        arguments=('events: [{id: "a", at: "2026-01-01T00:00:00Z", userId: "{user_id}"}]',), stranger="FORBIDDEN"
    ),
    "Query.projects": Field(
        arguments=(
            "",
            'after: "{cursor}"',
            f'search: "{MARK}"',
            'search: "."',
            'search: ".*", first: 3',
            f'tags: ["{MARK}"]',
            "starred: true",
        ),
        stranger=None,
    ),
    "Query.project": Field(
        arguments=('id: "{project}"', 'id: "{deleted_project}"', 'id: "{user_id}"'), stranger="NOT_FOUND"
    ),
    "Mutation.register": Field(
        arguments=('input: {name: "M", email: "{email}", password: "the attacker\'s own"}',),
        anonymous=None,
        stranger=None,
        changes=frozenset({"registrations", "outbox"}),
    ),
    "Mutation.confirmEmail": Field(
        arguments=(
            f'token: "{"x" * 59}", password: "the attacker\'s own"',
            'token: "{email}", password: "the attacker\'s own"',
        ),
        anonymous="INVALID",
        stranger="INVALID",
    ),
    "Mutation.signIn": Field(
        arguments=('email: "{email}", password: "a wrong password"',),
        anonymous="BAD_CREDENTIALS",
        stranger="BAD_CREDENTIALS",
    ),
    "Mutation.signOut": Field(stranger=None, changes=frozenset({"sessions"})),
    "Query.sessions": Field(stranger=None),
    "Mutation.revokeSession": Field(arguments=('id: "{user_id}"',), stranger="NOT_FOUND"),
    "Mutation.revokeOtherSessions": Field(stranger=None),
    "Mutation.changePassword": Field(
        arguments=('current: "the wrong one", new: "the attacker\'s own"',), stranger="FORBIDDEN"
    ),
    "Mutation.closeAccount": Field(stranger=None, changes=frozenset({"users", "sessions", "outbox", "auditlogs"})),
    "Mutation.reopenAccount": Field(
        arguments=('email: "{email}", password: "a wrong password"',),
        anonymous="BAD_CREDENTIALS",
        stranger="BAD_CREDENTIALS",
    ),
    "Query.secondFactor": Field(stranger=None),
    "Mutation.reauthenticate": Field(
        arguments=('password: "a wrong password"', 'password: "a wrong password", code: "000000"'), stranger="FORBIDDEN"
    ),
    "Mutation.updateProfile": Field(arguments=('name: "M"',), stranger=None, changes=frozenset({"users", "auditlogs"})),
    "Mutation.updateNotificationSettings": Field(
        arguments=("input: {email: {productUpdates: false}, push: {enabled: true}}",),
        stranger=None,
        changes=frozenset({"users", "auditlogs"}),
    ),
    "Mutation.requestEmailChange": Field(
        arguments=('email: "{email}"',),
        stranger=None,
        changes=frozenset({"users", "emailchanges", "outbox", "auditlogs"}),
    ),
    "Mutation.confirmEmailChange": Field(
        arguments=(f'token: "{"x" * 59}", password: "{PASSWORD}"', f'token: "{{email}}", password: "{PASSWORD}"'),
        anonymous="INVALID",
        stranger="INVALID",
    ),
    "Mutation.cancelEmailChange": Field(stranger=None),
    "Mutation.beginTotp": Field(stranger=None, changes=frozenset({"credentials"})),
    "Mutation.confirmTotp": Field(arguments=('code: "000000"',), stranger="CONFLICT"),
    "Mutation.disableTotp": Field(stranger="NOT_FOUND"),
    "Mutation.regenerateRecoveryCodes": Field(stranger="NOT_FOUND"),
    "Mutation.requestPasswordReset": Field(
        arguments=('email: "{email}"',), anonymous=None, stranger=None, changes=frozenset({"outbox"})
    ),
    "Mutation.resetPassword": Field(
        arguments=(f'token: "{"x" * 59}", password: "the attacker\'s own"',), anonymous="INVALID", stranger="INVALID"
    ),
    "Query.notifications": Field(arguments=("", "unread: true", 'after: "{cursor}"'), stranger=None),
    "Mutation.markNotificationRead": Field(arguments=('id: "{notification}"', 'id: "{user_id}"'), stranger="NOT_FOUND"),
    "Mutation.markAllNotificationsRead": Field(stranger=None),
    "Mutation.createProject": Field(
        arguments=('input: {name: "mine"}',), stranger=None, changes=frozenset({"projects", "gauges"})
    ),
    "Mutation.updateProject": Field(
        arguments=tuple(
            f'id: "{{{which}}}", input: {change}'
            for which in ("project", "deleted_project")
            for change in ('{name: "taken"}', "{canvasData: {taken: true}}", "{description: null}", "{}")
        ),
        stranger="NOT_FOUND",
    ),
    "Mutation.duplicateProject": Field(arguments=('id: "{project}"', 'id: "{deleted_project}"'), stranger="NOT_FOUND"),
    "Mutation.deleteProject": Field(arguments=('id: "{project}"', 'id: "{deleted_project}"'), stranger="NOT_FOUND"),
    "Mutation.restoreProject": Field(arguments=('id: "{deleted_project}"', 'id: "{project}"'), stranger="NOT_FOUND"),
    "Query.trash": Field(arguments=("", 'after: "{cursor}"'), stranger=None),
    "Mutation.purgeProject": Field(arguments=('id: "{deleted_project}"', 'id: "{project}"'), stranger="NOT_FOUND"),
    "Mutation.emptyTrash": Field(stranger=None),
    "Query.projectVersions": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Query.projectVersion": Field(arguments=(_VERSION,), stranger="NOT_FOUND"),
    "Mutation.createProjectVersion": Field(arguments=('projectId: "{project}", name: "taken"',), stranger="NOT_FOUND"),
    "Mutation.updateProjectVersion": Field(
        arguments=(_VERSION + ', input: {name: "taken"}', _VERSION + ", input: {pinned: false}"),
        stranger="NOT_FOUND",
    ),
    "Mutation.deleteProjectVersion": Field(arguments=(_VERSION,), stranger="NOT_FOUND"),
    "Mutation.restoreProjectVersion": Field(arguments=(_VERSION,), stranger="NOT_FOUND"),
    "Query.projectAssets": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Mutation.deleteAsset": Field(arguments=('projectId: "{project}", id: "{asset}"',), stranger="NOT_FOUND"),
    "Mutation.createProjectImport": Field(arguments=("", 'name: "mine"'), stranger=None),
    "Query.sharedProjects": Field(arguments=("", 'after: "{cursor}"', f'search: "{MARK}"'), stranger=None),
    "Query.projectShares": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Mutation.shareProject": Field(
        arguments=tuple(
            f'projectId: "{{{which}}}", email: "{email}", role: EDITOR'
            for which in ("project", "deleted_project")
            for email in ("ada@example.com.example", "mallory@example.com")
        ),
        stranger="NOT_FOUND",
    ),
    "Mutation.unshareProject": Field(
        arguments=('projectId: "{project}", email: "guest@example.com"',), stranger="NOT_FOUND"
    ),
    "Mutation.leaveProject": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Query.projectLinks": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Mutation.createProjectLink": Field(
        arguments=('projectId: "{project}"', 'projectId: "{deleted_project}"'), stranger="NOT_FOUND"
    ),
    "Mutation.revokeProjectLink": Field(arguments=('projectId: "{project}", id: "{link}"',), stranger="NOT_FOUND"),
    "Query.securityHistory": Field(arguments=("", 'after: "{cursor}"'), stranger=None),
    "Query.auditLog": Field(
        arguments=("", 'userId: "{user_id}"', 'resource: "projects", resourceId: "{project}"'), stranger="FORBIDDEN"
    ),
    "Mutation.refreshSession": Field(stranger=None, changes=frozenset({"sessions"})),
    "Query.apiKeys": Field(stranger=None),
    "Mutation.createApiKey": Field(
        arguments=('input: {name: "mine", permissions: ["projects:read"]}',),
        stranger=None,
        changes=frozenset({"apikeys", "users", "auditlogs", "outbox"}),
    ),
    "Mutation.updateApiKey": Field(
        arguments=('id: "{api_key}", input: {name: "taken"}', 'id: "{api_key}", input: {permissions: ["usage:read"]}'),
        stranger="NOT_FOUND",
    ),
    "Mutation.rotateApiKey": Field(arguments=('id: "{api_key}"', 'id: "{user_id}"'), stranger="NOT_FOUND"),
    "Mutation.revokeApiKey": Field(arguments=('id: "{api_key}"', 'id: "{user_id}"'), stranger="NOT_FOUND"),
}
