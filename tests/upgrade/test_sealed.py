"""What was written before there were seals is sealed, and its plain bytes are gone; sealed records stay readable.

``data/records-v2.jsonl`` was sealed with the key of 32 bytes 0 to 31, ``data/plain-secrets-v1.db`` was written by a
server that did not seal. Neither is ever edited.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import msgspec
import pytest

from moorage.model.claim import Claim, Mounted
from moorage.model.operation import Operation
from moorage.model.volume import Volume
from moorage.serve.server import open_server
from moorage.state import hiding
from moorage.state.codec import RECORDS, Records, find_seal_key
from moorage.state.feed import Feed
from moorage.state.keyring import join_keys, make_key
from moorage.state.keys import table_of
from moorage.state.resealing import Resealing
from moorage.state.sealing import Sealer
from moorage.state.sqlite import SqliteStore
from moorage.testing.key_sources import FixedKeys

pytestmark = pytest.mark.anyio
DATA = Path(__file__).parent / "data"
KEY = make_key(bytes(range(32)))


def test_sealed_records_mean_what_they_meant() -> None:
    records = Records(Sealer(join_keys((KEY,), ()), "file:/k"))
    plain = dict(read_lines("records-v1.jsonl"))
    for key, value in read_lines("records-v2.jsonl"):
        cls = RECORDS[table_of(key)]
        assert records.decode(key, value) == records.decode(key, plain.pop(key))
        assert value.startswith(b"2\n" if cls in hiding.HIDING else b"1\n")
        assert find_seal_key(value) in ("", KEY.id)
    assert not plain


def read_lines(name: str) -> list[tuple[str, bytes]]:
    rows = map(msgspec.json.decode, (DATA / name).read_bytes().splitlines())
    return [(row["key"], row["value"].encode()) for row in rows]


def read_files(directory: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file())


async def test_plain_secrets_are_sealed_and_their_bytes_are_gone(tmp_path: Path) -> None:
    path = Path(shutil.copy(DATA / "plain-secrets-v1.db", tmp_path / "state.db"))
    assert read_files(tmp_path).count(b"PLAIN-") > 20
    store = await SqliteStore.open(path)
    records = Records(Sealer(join_keys((KEY,), ()), "file:/k"))
    feed = Feed(store, records)
    resealing = Resealing(store, records, FixedKeys(KEY))
    async with anyio.create_task_group() as group:
        await group.start(feed.run)
        await group.start(resealing.run)
        with anyio.fail_after(20):
            while resealing.progress.phase != "done":
                await anyio.sleep(0.01)
        # While the server runs: the file, its write-ahead log and its index.
        assert b"PLAIN" not in read_files(tmp_path)
        volume = feed.view.volumes.get("default", "data")
        assert volume is not None
        assert isinstance(volume.value, Volume)
        assert volume.value.secrets.values == {"password": "PLAIN-new-secret"}
        assert volume.value.mount_options is not None
        assert volume.value.mount_options.mount_flags == ("noatime", "password=PLAIN-flag-1")
        group.cancel_scope.cancel()
    assert await store.is_clean()
    claims = (await store.list("claims/")).entries
    claim = records.decode(claims[0].key, claims[0].value)
    assert isinstance(claim, Claim)
    assert isinstance(claim.state, Mounted)
    assert claim.state.publish_context == {"chap": "PLAIN-publish"}
    operation = (await store.list("operations/")).entries[0]
    made = records.decode(operation.key, operation.value)
    assert isinstance(made, Operation)
    assert getattr(made.step, "secrets").values == {"t": "PLAIN-snapshot"}  # noqa: B009 (one arm of many)
    await store.close()
    assert b"PLAIN" not in read_files(tmp_path)


async def test_server_upgrades_by_being_started(tmp_path: Path) -> None:
    shutil.copy(DATA / "plain-secrets-v1.db", tmp_path / "state.db")
    async with open_server("127.0.0.1:0", tmp_path) as server:
        sealing = server.service.sealing
        assert sealing is not None
        with anyio.fail_after(20):
            while sealing.progress.phase != "done":
                await anyio.sleep(0.01)
        assert (sealing.progress.done, sealing.progress.total) == (4, 4)
    assert b"PLAIN" not in read_files(tmp_path)
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
