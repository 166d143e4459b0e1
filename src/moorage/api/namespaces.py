"""Handlers of namespaces. Source: golden namespaces.jsonl; contract clients §2.1, §5."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from moorage.api.bodies import decode
from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.params import check_region, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.reads import NAMESPACES
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.ids import NamespaceName
from moorage.model.namespace import Namespace
from moorage.rules.authorize import ANYTHING
from moorage.rules.namespaces import SETTINGS, fingerprint


class NamespaceBody(Struct):
    """A namespace as a client sends it."""

    name: str = field(default="", name="Name")
    description: str = field(default="", name="Description")
    quota: str = field(default="", name="Quota")
    meta: dict[str, str] | None = field(default=None, name="Meta")
    capabilities: Any = field(default=None, name="Capabilities")
    consul: Any = field(default=None, name="ConsulConfiguration")
    node_pools: Any = field(default=None, name="NodePoolConfiguration")
    optional_claims: Any = field(default=None, name="OptionalExtraClaims")
    required_claims: Any = field(default=None, name="RequiredExtraClaims")
    vault: Any = field(default=None, name="VaultConfiguration")


def _answer(namespace: Namespace, created: int, modified: int) -> dict[str, Any]:
    """A namespace; ``ID`` beside ``Name``, because python-nomad looks for it."""
    return dict.fromkeys(SETTINGS) | {
        **namespace.settings,
        "CreateIndex": created,
        "Description": namespace.description,
        "Hash": fingerprint(namespace),
        "ID": namespace.name,
        "Meta": namespace.meta,
        "ModifyIndex": modified,
        "Name": namespace.name,
        "Quota": namespace.quota,
    }


def _index(service: Service) -> int:
    # The default namespace counts as written at 1, before anything else.
    return max(1, service.reads.table_index(NAMESPACES))


async def list_namespaces(service: Service, request: Request) -> Answer:
    """GET /v1/namespaces."""
    options = parse_read(request)
    await wait_for_change(service, options, (NAMESPACES,), lambda: _index(service))
    found = service.reads.list_namespaces(options.prefix)
    is_seen = request.access.chooser(ANYTHING)
    rows = [_answer(r.value, r.created, r.modified) for r in found if is_seen(r.value.name)]
    return json_answer(request, rows, Meta(index=_index(service)))


async def read_namespace(service: Service, request: Request, name: str) -> Answer:
    """GET /v1/namespace/:name."""
    options = parse_read(request)
    if not name:
        raise BadRequest("Missing Namespace Name")
    await wait_for_change(service, options, (NAMESPACES + name,), lambda: _index(service))
    found = service.namespaces.find(name)
    meta = Meta(index=_index(service))
    if found is None:
        return text_answer(404, "Namespace not found", meta)
    return json_answer(request, _answer(found.value, found.created, found.modified), meta)


async def write_namespace(service: Service, request: Request, name: str = "") -> Answer:
    """PUT or POST /v1/namespace and /v1/namespace/:name."""
    body = decode(NamespaceBody, request.body)
    check_region(request.query)
    if name and body.name and body.name != name:
        raise BadRequest("Namespace name does not match request path")
    revision = await service.namespaces.put(
        Namespace(
            name=NamespaceName(body.name or name),
            description=body.description,
            quota=body.quota,
            meta=body.meta,
            settings=_settings(body),
        )
    )
    return _written(revision)


def _settings(body: NamespaceBody) -> dict[str, Any]:
    given = {
        "Capabilities": body.capabilities,
        "ConsulConfiguration": body.consul,
        "NodePoolConfiguration": body.node_pools,
        "OptionalExtraClaims": body.optional_claims,
        "RequiredExtraClaims": body.required_claims,
        "VaultConfiguration": body.vault,
    }
    for member, value in given.items():
        if value is not None and not isinstance(value, dict):
            raise BadRequest(f"json: {member} must be an object or null")
    return {member: value for member, value in given.items() if value is not None}


async def delete_namespace(service: Service, request: Request, name: str) -> Answer:
    """DELETE /v1/namespace/:name."""
    check_region(request.query)
    if not name:
        raise BadRequest("Missing Namespace Name")
    return _written(await service.namespaces.delete(name))


def _written(revision: int) -> Answer:
    """The recorded answer of a write has the index alone."""
    return Answer(headers={"X-Nomad-Index": str(revision)})
