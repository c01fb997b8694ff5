"""Builds the services of one store: the only place that knows how they depend on each other and on the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.challenge import Challenges
from proxy.services.accounts.invitations import InvitationService
from proxy.services.accounts.me import MeService
from proxy.services.accounts.members import MemberService
from proxy.services.accounts.orgs import OrgService
from proxy.services.accounts.roles import RoleService
from proxy.services.accounts.users import UserService
from proxy.services.audit.reads import AuditReads
from proxy.services.audit.service import AuditService
from proxy.services.explain.explanation import Gateway
from proxy.services.explain.report_only import ReportService
from proxy.services.explain.service import ExplainService
from proxy.services.keys.service import KeyService
from proxy.services.nodes import NodeService, StoreNodes
from proxy.services.policy.model import AdminRight, TokenPolicy
from proxy.services.policy.service import PolicyService
from proxy.services.secret_hasher import SecretHasher
from proxy.services.tokens.expiry_notices import ExpiryNotices
from proxy.services.tokens.issuance import Minter
from proxy.services.tokens.service import TokenService
from proxy.settings.compile import credential_places, identity_outputs, route_table, token_format
from proxy.settings.model import Settings
from proxy.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """All services of one store, under one set of settings. A reload of the configuration builds another one."""

    users: UserService
    orgs: OrgService
    members: MemberService
    invitations: InvitationService
    me: MeService
    roles: RoleService
    tokens: TokenService
    keys: KeyService
    policies: PolicyService
    notices: ExpiryNotices
    audit: AuditService
    explain: ExplainService
    reports: ReportService
    nodes: NodeService


def build_services(
    store: Store,
    settings: Settings,
    *,
    clock: Callable[[], float],
    hasher: SecretHasher,
    cache_key: bytes,
    reads: AuditReads,
    nodes: StoreNodes,
) -> Services:
    """The services over ``store``. ``clock`` returns unix seconds; ``reads`` records who reads the audit log."""
    tokens = token_format(settings)
    gateway = _gateway(settings)
    minter = Minter(format=tokens, hasher=hasher, cache_key=cache_key)
    policies = PolicyService(store, clock, _policy(settings))
    token_service = TokenService(store, clock, minter=minter, policies=policies)
    invitations = settings.invitations
    return Services(
        users=UserService(store, clock),
        orgs=OrgService(store, clock),
        members=MemberService(store, clock),
        invitations=InvitationService(store, clock, lifetime=invitations.lifetime, per_org=invitations.per_org),
        me=MeService(store, clock),
        roles=RoleService(store, clock, settings.roles),
        tokens=token_service,
        keys=KeyService(store, clock, minter=minter, policies=policies, tokens=token_service),
        policies=policies,
        notices=ExpiryNotices(store, clock, settings.notices.days),
        audit=AuditService(store, clock, reads),
        explain=ExplainService(store, clock, gateway=gateway, tokens=tokens),
        reports=ReportService(store, clock, gateway.routes),
        nodes=NodeService(store, clock, nodes),
    )


def _gateway(settings: Settings) -> Gateway:
    """The routes, challenges, identity headers and limits with which workers under these settings decide."""
    return Gateway(
        routes=route_table(settings),
        challenges=Challenges(realm=settings.brand, places=credential_places(settings)),
        identity=identity_outputs(settings),
        longest=settings.limits.under(settings.listen.proxy.limits).request_line,
    )


def _policy(settings: Settings) -> TokenPolicy:
    """The deployment's own policy."""
    chosen = settings.policy
    return TokenPolicy(
        max_lifetime=chosen.max_lifetime,
        require_expiry=chosen.require_expiry,
        tokens_per_user=chosen.tokens_per_user,
        org_tokens_per_org=chosen.org_tokens_per_org,
        inactive_after=chosen.inactive_after,
        require_scopes=chosen.require_scopes,
        forbidden_scopes=chosen.forbidden_scopes,
        admin_rights=frozenset(map(AdminRight, chosen.admin_rights)),
    )
