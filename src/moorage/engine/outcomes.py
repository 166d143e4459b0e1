"""Outcomes: fold what agents report into the records, each in one guarded write.

A report carries the revision that it acted on; when the record has moved on since, the report says nothing about what
is wanted now and is dropped: the step is then simply decided and made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from moorage.engine.planning import Move, Refresh, Removal, Settlement
from moorage.engine.ports import Chance, Clock
from moorage.errors import MoorageError, StateConflict
from moorage.model.assignment import (
    MountedReport,
    MountFailedReport,
    Report,
    StepReport,
    UnmountedReport,
)
from moorage.model.claim import Allocation, Claim
from moorage.model.ids import ClaimId, Revision
from moorage.model.operation import Operation
from moorage.model.steps import Created, Failed, Outcome
from moorage.model.volume import Fault, Progress, Volume
from moorage.rules import allocations as allocation_rules
from moorage.rules import claims as claim_rules
from moorage.rules import operations as operation_rules
from moorage.rules import volumes as volume_rules
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

log = structlog.get_logger()
replace = msgspec.structs.replace
Told = TypeVar("Told")


class Outcomes:
    """Writes outcomes and settlements."""

    def __init__(self, repo: Repo, clock: Clock, chance: Chance) -> None:
        self._repo = repo
        self._clock = clock
        self._chance = chance

    async def fold_reports(self, reports: Sequence[Report]) -> None:
        """Fold a batch; each report is a transaction of its own, and they are committed together where they can be.

        Raises what ``commit`` does, StateConflict aside, for the first that was not written; what was folded stays so.
        """
        kept: list[tuple[Report, str, Write]] = []
        for report in reports:
            key, outcome = _key_and_outcome(report)
            found = self._find(key)
            # Only this reconciler's server writes outcomes, so a conflict means that an intent was written in between:
            # the revision has then moved, and the report is dropped below.
            if found is None or not self.is_current(found, report):
                log.info("report.stale", key=key, revision=report.revision)
                continue
            write = self._fold_into(key, found, outcome)
            if write.ops:
                kept.append((report, key, write))
        results = await self._commit([write for _, _, write in kept])
        failures: list[MoorageError] = []
        for (report, key, _), result in zip(kept, results, strict=True):
            if isinstance(result, StateConflict):
                log.info("report.stale", key=key, revision=report.revision)
            elif isinstance(result, MoorageError):
                failures.append(result)
        if failures:
            # The agent sends all of them again, and those that were written are stale then.
            raise failures[0]

    async def _commit(self, writes: Sequence[Write]) -> Sequence[Revision | MoorageError]:
        if len(writes) != 1:
            return await self._repo.commit_each(writes) if writes else ()
        try:
            return (await self._repo.commit(writes[0]),)
        except MoorageError as error:
            return (error,)

    def is_current(self, found: Record[Any], report: Report) -> bool:
        """Whether the report is about the record as it is now."""
        return found.modified == report.revision

    def _find(self, key: str) -> Record[Any] | None:
        table = self._repo.view.tables_by_prefix.get(key[: key.find("/") + 1])
        return table.find(key) if table is not None else None

    def _fold_into(self, key: str, found: Record[Any], outcome: claim_rules.Reported) -> Write:
        outcome = stamp_fault(outcome, self._clock.now_ns())
        log_failure(key, outcome)
        write = Write()
        match found.value:
            case Volume() if not isinstance(outcome, (claim_rules.MountDone, claim_rules.UnmountDone)):
                self._fold_volume(write, key, found, outcome)
            case Operation() if not isinstance(outcome, (claim_rules.MountDone, claim_rules.UnmountDone)):
                self._fold_operation(write, key, found, outcome)
            case Claim():
                self._fold_claim(write, key, found, outcome)
        return write

    def _fold_volume(self, write: Write, key: str, found: Record[Volume], outcome: Outcome) -> None:
        volume = found.value
        others: list[Volume] = []
        if isinstance(outcome, Created):
            same_disk = self._repo.view.volumes.of_disk(volume.plugin_id, outcome.external_id)
            others = [r.value for r in same_disk if r.value.key != volume.key]
        # A refusal names volumes of its own namespace only: who creates here may not know what is there.
        named = sorted(other.id for other in others if other.namespace == volume.namespace)
        folding = volume_rules.Folding(
            now_ns=self._clock.now_ns(),
            jitter=self._chance.jitter(),
            is_external_id_taken=bool(others),
            taken_by=named[0] if named else "",
        )
        after = volume_rules.fold_outcome(volume, outcome, folding)
        if (
            isinstance(outcome, Failed)
            and not outcome.fault.final
            and after is not None
            and volume_rules.is_given_up(after)
        ):
            # Nothing more can be learned by the name: `moorage volume orphans` shows what nobody registered.
            log.warning("create.unclear", key=key, name=volume.name, status=outcome.fault.status)
        if after is None:
            write.delete(key, revision=found.modified)
        elif after is not volume:
            write.put(key, after, revision=found.modified)

    def _fold_operation(self, write: Write, key: str, found: Record[Operation], outcome: Outcome) -> None:
        now_ns, jitter = self._clock.now_ns(), self._chance.jitter()
        after = operation_rules.fold_outcome(found.value, outcome, now_ns=now_ns, jitter=jitter)
        write.put(key, after, revision=found.modified)

    def _fold_claim(self, write: Write, key: str, found: Record[Claim], outcome: claim_rules.Reported) -> None:
        claim = found.value
        now_ns = self._clock.now_ns()
        after = claim_rules.fold_outcome(claim, outcome, now_ns=now_ns, jitter=self._chance.jitter())
        if after is claim:
            return
        write.put(key, after, revision=found.modified)
        self._fold_allocation(write, claim, after)

    def _fold_allocation(self, write: Write, claim: Claim, after: Claim | None) -> None:
        """Put the allocation as its claims make it now into the same write, and release its claims if it failed."""
        view = self._repo.view
        found = view.find_allocation(claim.allocation_id)
        if found is None:
            return
        records = [r for r in view.claims.of_allocation(claim.allocation_id) if r.value.id != claim.id]
        claims = [r.value for r in records] + ([after] if after is not None else [])
        allocation: Allocation = found.value
        folded = allocation_rules.fold_claims(allocation, claims, now_ns=self._clock.now_ns())
        if folded is allocation:
            return
        write.put(keys.allocation_key(allocation.id), folded, revision=found.modified)
        if folded.wanted == "stop" and allocation.wanted == "run":
            for record in records:
                if record.value.wanted == "held":
                    released = replace(record.value, wanted="released", progress=Progress())
                    write.put(keys.claim_key(record.value.id), released, revision=record.modified)

    # -- settlements -------------------------------------------------------------------------------------------------

    async def settle(self, key: str, settlement: Settlement) -> None:
        """Write a change that needs no driver call. Raises StateConflict, StoreUnavailable."""
        found = self._find(key)
        if found is None:
            return
        write = Write()
        match settlement:
            case Removal():
                write.delete(key, revision=found.modified)
                if isinstance(found.value, Claim):
                    self._remove_claim(write, found.value)
            case Move(state=state, because=because):
                for other, revision in because.items():
                    write.expect(other, revision)
                after = replace(found.value, state=state, progress=_kept_fault(found.value))
                write.put(key, after, revision=found.modified)
                self._fold_allocation(write, found.value, after)
            case Refresh():
                allocation = found.value
                claims = [r.value for r in self._repo.view.claims.of_allocation(allocation.id)]
                folded = allocation_rules.fold_claims(allocation, claims, now_ns=self._clock.now_ns())
                if folded is allocation:
                    return
                write.put(key, folded, revision=found.modified)
        await self._repo.commit(write)

    def _remove_claim(self, write: Write, claim: Claim) -> None:
        """With the claim goes the volume's mode in use, if it was the last; its modify index moves in any case."""
        view = self._repo.view
        volume = view.volumes.get(claim.namespace, claim.volume_id)
        if volume is not None:
            others = [r for r in view.claims.of_volume(*claim.volume_key) if r.value.id != claim.id]
            freed = volume.value if others else replace(volume.value, access_mode="", attachment_mode="")
            write.put(
                keys.volume_key(claim.namespace, claim.volume_id),
                replace(freed, modified_at_ns=self._clock.now_ns()),
                revision=volume.modified,
            )
        self._fold_allocation(write, claim, None)


def _kept_fault(claim: Claim) -> Progress:
    return Progress(last_fault=claim.progress.last_fault) if claim.wanted == "released" else Progress()


def _key_and_outcome(report: Report) -> tuple[str, claim_rules.Reported]:
    match report:
        case StepReport():
            return report.key, report.outcome
        case MountedReport():
            done = claim_rules.MountDone(
                path=report.path,
                publish_path=report.publish_path,
                staging_path=report.staging_path,
                grown_bytes=report.grown_bytes,
            )
            return keys.claim_key(report.claim_id), done
        case UnmountedReport():
            return keys.claim_key(report.claim_id), claim_rules.UnmountDone()
        case MountFailedReport():
            return keys.claim_key(ClaimId(report.claim_id)), Failed(fault=report.fault)


def stamp_fault(outcome: Told, now_ns: int) -> Told:
    """The outcome, a failure with the time at which it was told if it has none."""
    if isinstance(outcome, Failed) and not outcome.fault.at_ns:
        return replace(outcome, fault=replace(outcome.fault, at_ns=now_ns))
    return outcome


def log_failure(key: str, outcome: object) -> None:
    """A warning for a failed step, with the record's key."""
    if isinstance(outcome, Failed):
        fault: Fault = outcome.fault
        log.warning("step.failed", key=key, method=fault.method, status=fault.status, final=fault.final)
