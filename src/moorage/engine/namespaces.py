"""Use cases for namespaces: write one, delete one.

A deletion and a new volume exclude each other by way of the namespace's record. The deletion marks the record as
closing, looks for volumes in the records as they were then or later, and removes the record at the revision of its
mark. A new volume expects the record at the revision it has seen, and takes a mark away in its own write. So either
the volume was there before the mark (the deletion sees it), or its write moves the record (the deletion's compare
fails and it starts over), or it comes after the deletion (its own compare fails). A mark that a crash leaves behind
changes nothing for anybody.
"""

from __future__ import annotations

import msgspec

from moorage.engine.reads import Reads
from moorage.engine.retrying import decide_again
from moorage.model.ids import NamespaceName
from moorage.model.namespace import Namespace
from moorage.rules.namespaces import check_deletable, check_sent, in_use, missing
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

replace = msgspec.structs.replace


class Namespaces:
    """Find, write, delete."""

    def __init__(self, repo: Repo, reads: Reads) -> None:
        self._repo = repo
        self._reads = reads

    def find(self, name: str) -> Record[Namespace] | None:
        """The namespace, or None; ``default`` is always there."""
        return next((r for r in self._reads.list_namespaces(name) if r.value.name == name), None)

    async def put(self, namespace: Namespace) -> int:
        """Write the namespace, whether it is new or known; returns the revision. Raises Rejected, Unavailable."""
        check_sent(namespace)
        key = keys.namespace_key(namespace.name)

        async def decide() -> int:
            found = self._repo.view.namespaces.find(key)
            return await self._repo.commit(Write().put(key, namespace, revision=found.modified if found else 0))

        return await decide_again(decide, _restless(namespace.name), namespace=namespace.name)

    async def delete(self, name: str) -> int:
        """Remove the namespace if it holds no volume; returns the revision.

        Raises NotFound (``namespace not found``), Conflict (it is the default one, or it holds volumes), Unavailable.
        """
        check_deletable(name)
        key = keys.namespace_key(NamespaceName(name))

        async def decide() -> int:
            found = self._repo.view.namespaces.find(key)
            if found is None:
                raise missing(name)
            self._check_empty(name)
            marked = replace(found.value, is_closing=True)
            revision = await self._repo.commit(Write().put(key, marked, revision=found.modified))
            # The view is now at the mark's revision or later: a volume that came before it is seen here.
            self._check_empty(name)
            return await self._repo.commit(Write().delete(key, revision=revision))

        return await decide_again(decide, _restless(name), namespace=name)

    def _check_empty(self, name: str) -> None:
        """No volume is on record there, not even one that is being created or deleted. Raises Conflict."""
        if next(iter(self._repo.view.volumes.ordered(name)), None) is not None:
            raise in_use(name)


def _restless(name: str) -> str:
    return f'namespace "{name}" keeps changing; try again'
