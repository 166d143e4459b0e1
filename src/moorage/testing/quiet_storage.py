"""Storage for runs in virtual time that ask what things cost, not whether they are right: many volumes, and a driver's
steps done to mounts in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moorage.model import steps
from moorage.model.ids import NamespaceName, PluginId, VolumeId
from moorage.model.volume import Capability, Volume
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.testing.agent_world import MemoryMounter


def carry_out(step: steps.Step, mounter: MemoryMounter, data: str) -> steps.Outcome:
    """What a good driver that attaches and stages answers; ``data`` is shown wherever a volume is."""
    match step:
        case steps.AttachVolume():
            return steps.Attached(publish_context={})
        case steps.StageVolume():
            mounter.bind(data, step.staging_path, read_only=False)
        case steps.PublishVolume():
            os.makedirs(step.target_path, exist_ok=True)
            mounter.bind(step.staging_path, step.target_path, read_only=False)
        case steps.UnpublishVolume():
            mounter.unmount(step.target_path)
            os.rmdir(step.target_path)
        case steps.UnstageVolume():
            mounter.unmount(step.staging_path)
        case _:
            pass
    return steps.Done()


async def put_volumes(repo: Repo, names: Sequence[str], plugin_id: PluginId, *, batch: int) -> None:
    """Write a record for each name, as of a volume that is ready, so many in a transaction."""
    capability = Capability(access_mode="single-node-writer", attachment_mode="file-system")
    for start in range(0, len(names), batch):
        write = Write()
        for name in names[start : start + batch]:
            volume = Volume(
                id=VolumeId(name),
                namespace=NamespaceName("default"),
                plugin_id=plugin_id,
                name=name,
                external_id=name,
                state="ready",
                capabilities=(capability,),
            )
            write.put(keys.volume_key(*volume.key), volume, revision=0)
        await repo.commit(write)
