"""Every route has a grant, and the grants are those of this list: a new route is added here on purpose."""

from __future__ import annotations

import pytest

from moorage.api import grants
from moorage.api.grants import Grant
from moorage.api.routes import ROUTES

ROWS = [(route.pattern, method, served.grant) for route in ROUTES for method, served in route.handlers.items()]

# Who has no token, or a bad one, gets an answer from these alone.
FOR_EVERYBODY = {
    ("/v1/status/leader", "GET"),
    ("/v1/status/peers", "GET"),
    ("/v1/regions", "GET"),
    ("/v1/agent/health", "GET"),
    ("/v1/acl/bootstrap", "PUT"),
    ("/v1/acl/bootstrap", "POST"),
    # What lets a node in is a join token or a certificate; its handler asks for it.
    ("/v1/node/:id/join", "PUT"),
}
OF_NODES = {"register", "plugins", "steps", "claims", "reports"}


@pytest.mark.parametrize(("pattern", "method", "grant"), ROWS, ids=[f"{m} {p}" for p, m, _ in ROWS])
def test_every_route_has_a_grant(pattern: str, method: str, grant: Grant) -> None:
    assert isinstance(grant, Grant)
    assert grant.name
    assert grant.meaning
    assert getattr(grants, grant.name.upper()) is grant


def test_only_these_are_for_everybody() -> None:
    assert {(pattern, method) for pattern, method, grant in ROWS if grant is grants.ANONYMOUS} == FOR_EVERYBODY


def test_pages_of_nodes_are_for_nodes() -> None:
    found = {pattern for pattern, _, grant in ROWS if grant is grants.NODE_SELF}
    assert found == {f"/v1/node/:id/{page}" for page in OF_NODES}
