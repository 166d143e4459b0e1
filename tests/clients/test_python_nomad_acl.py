"""python-nomad, unmodified, against a server with access control: bootstrap, policies, tokens, what they open."""

from __future__ import annotations

from collections.abc import Iterator

import nomad
import pytest
import requests
from dev_server import Program, running_fleet
from nomad.api.exceptions import BadRequestNomadException, URLNotAuthorizedNomadException, URLNotFoundNomadException

RULES = 'namespace "default" {\n  policy = "read"\n}\nnode { policy = "read" }\n'


@pytest.fixture(scope="module")
def guarded() -> Iterator[Program]:
    """A server with access control."""
    with running_fleet() as fleet:
        yield fleet.start_server("--acl")


def test_from_bootstrap_to_revocation(guarded: Program) -> None:
    with requests.Session() as session:

        def connect(secret: str) -> nomad.Nomad:
            return nomad.Nomad(address=guarded.url, timeout=20, session=session, token=secret or None)

        with pytest.raises(URLNotAuthorizedNomadException):
            connect("").nodes.get_nodes()
        made = connect("").acl.generate_bootstrap()
        assert (made["Name"], made["Type"], made["Global"]) == ("Bootstrap Token", "management", True)
        with pytest.raises(BadRequestNomadException, match="ACL bootstrap already done"):
            connect("").acl.generate_bootstrap()
        acl = connect(made["SecretID"]).acl
        policy = {"Name": "reader", "Description": "reads", "Rules": RULES}
        acl.create_policy("reader", policy)
        acl.update_policy("reader", policy | {"Description": "still reads"})
        assert acl.get_policy("reader")["Rules"] == RULES
        assert [p["Description"] for p in acl.get_policies()] == ["still reads"]
        token = acl.create_token({"Name": "r", "Type": "client", "Policies": ["reader"], "Global": False})
        assert len(token["SecretID"]) == len(token["AccessorID"]) == 36
        reader = connect(token["SecretID"])
        assert reader.nodes.get_nodes() == []
        assert reader.acl.get_self_token()["AccessorID"] == token["AccessorID"]
        with pytest.raises(URLNotAuthorizedNomadException, match="Permission denied"):
            reader.acl.get_tokens()
        with pytest.raises(URLNotAuthorizedNomadException):
            reader.namespace.create_namespace({"Name": "x"})
        renamed = acl.update_token(token["AccessorID"], {**token, "Name": "renamed"})
        assert renamed["Name"] == acl.get_token(token["AccessorID"])["Name"] == "renamed"
        assert {t["Name"] for t in acl.get_tokens()} == {"Bootstrap Token", "renamed"}
        acl.delete_token(token["AccessorID"])
        with pytest.raises(URLNotAuthorizedNomadException):
            reader.nodes.get_nodes()
        with pytest.raises(URLNotFoundNomadException):
            acl.get_token(token["AccessorID"])
        acl.delete_policy("reader")
        assert acl.get_policies() == []
