"""What a command has at hand while it runs, and how it finds the record that an ID or a prefix means.

Never: printing of results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.cli.output import Output
from moorage.client.sync import Client, path_of
from moorage.errors import Conflict, NotFound

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of a command."""

    client: Client
    output: Output
    wants_json: bool = False
    is_input_terminal: bool = False
    read_input: Callable[[], str] = input

    @property
    def namespace(self) -> str:
        """The namespace asked for; empty stands for the server's default."""
        return self.client.endpoint.namespace


class Ambiguous(Conflict):
    """A prefix fits several records; ``rows`` are they, as the list shows them."""

    code = "ambiguous_prefix"

    def __init__(self, message: str, /, *, rows: Sequence[Row]) -> None:
        super().__init__(message)
        self.rows = rows


def pick(rows: Sequence[Row], prefix: str, what: str) -> Row:
    """The row whose ID is ``prefix``, else the only one whose ID begins with it.

    Raises NotFound when there is none and Ambiguous when there are several.
    """
    fitting = [row for row in rows if str(row.get("ID", "")).startswith(prefix)]
    exact = [row for row in fitting if row.get("ID") == prefix]
    chosen = exact or fitting
    if not chosen:
        raise NotFound(f"no {what} has the ID or prefix {prefix!r}", code=f"{what}_not_found")
    if len(chosen) > 1:
        raise Ambiguous(f"{prefix!r} fits {len(chosen)} {what}s: give one of their IDs in full", rows=chosen)
    return chosen[0]


def list_rows(session: Session, path: str, **query: str) -> list[Row]:
    """GET a list; an empty or null body is an empty list."""
    found = session.client.get(path, query).json()
    return found if isinstance(found, list) else []


def find_volume(session: Session, prefix: str) -> Row:
    """The list entry of the volume that ``prefix`` means (ID, Namespace, … as listed)."""
    return pick(list_rows(session, "/v1/volumes", type="csi", prefix=prefix), prefix, "volume")


def volume_query(session: Session, row: Row) -> dict[str, str]:
    """The query that addresses the volume of ``row``, also when the list was asked for all namespaces."""
    return {"namespace": str(row.get("Namespace") or session.namespace)}


def find_node(session: Session, text: str) -> Row | None:
    """The node whose ID or name is ``text``, else the only one whose ID begins with it; None if there is none."""
    nodes = list_rows(session, "/v1/nodes")
    named = [row for row in nodes if text in (row.get("ID"), row.get("Name"))]
    if len(named) == 1:
        return named[0]
    if named:
        raise Ambiguous(f"{text!r} names {len(named)} nodes: give an ID", rows=named)
    try:
        return pick(nodes, text, "node")
    except NotFound:
        return None


def volume_path(volume_id: str, *more: str) -> str:
    """``/v1/volume/csi/ID[/more]``."""
    return path_of("volume", "csi", volume_id, *more)
