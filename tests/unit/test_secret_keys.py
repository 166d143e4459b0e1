"""Places of keys: made once, kept private, never made anew over sealed records; refusals say what to do."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import anyio
import pytest

from moorage.config import SecretsSettings, Settings
from moorage.errors import BadRequest, StoreUnavailable
from moorage.model.ids import NamespaceName, PluginId, Revision, VolumeId
from moorage.model.volume import Secrets, Volume
from moorage.serve.secret_keys import Keys
from moorage.serve.server import open_server
from moorage.state.codec import Records
from moorage.state.keyring import make_key, write_key
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write
from moorage.state.sealing import Sealer
from moorage.state.store import Compare, Put
from moorage.testing.key_sources import FixedKeys

pytestmark = pytest.mark.anyio
ONE, TWO = make_key(b"1" * 32), make_key(b"2" * 32)
KEY = "volumes/default/data"
VOLUME = Volume(
    id=VolumeId("data"), namespace=NamespaceName("default"), plugin_id=PluginId("p"), secrets=Secrets({"p": "hush-1"})
)


async def make_sealed_store() -> MemoryStore:
    store, records = MemoryStore(), Records(Sealer(FixedKeys(ONE).load(), "x"))
    await store.transact([Compare(KEY, Revision(0))], [Put(KEY, records.encode(KEY, VOLUME))])
    return store


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return f"file:{path}"


async def test_first_key_is_made_once_and_private(tmp_path: Path) -> None:
    keys = Keys(SecretsSettings(), tmp_path, {})
    ring = await keys.open(MemoryStore())
    path = tmp_path / "secret.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (await Keys(SecretsSettings(), tmp_path, {}).open(MemoryStore())).active.id == ring.active.id
    assert base64.b64encode(ring.active.secret).decode() in path.read_text()
    assert keys.describe() == f"file:{path}"


async def test_no_new_key_is_made_over_sealed_records(tmp_path: Path) -> None:
    store = await make_sealed_store()
    with pytest.raises(StoreUnavailable) as caught:
        await Keys(SecretsSettings(), tmp_path, {}).open(store)
    for part in (ONE.id, "secret.key is missing", "from its backup", "secrets.lost_keys", "Nothing was changed"):
        assert part in caught.value.message
    assert not (tmp_path / "secret.key").exists()
    given_up = Keys(SecretsSettings(lost_keys=(ONE.id,)), tmp_path, {})
    assert ONE.id in (await given_up.open(store)).lost
    assert (tmp_path / "secret.key").exists()


def test_renewing_keeps_the_old_key_below_the_new_one(tmp_path: Path) -> None:
    keys = Keys(SecretsSettings(), tmp_path, {})
    write(tmp_path / "secret.key", write_key(ONE))
    first = keys.load().active
    second = keys.renew()
    assert [key.id for key in second.others] == [first.id]
    assert second.active.id != first.id
    assert Keys(SecretsSettings(), tmp_path, {}).load() == second
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_environment_and_credential(tmp_path: Path) -> None:
    credential = tmp_path / "seal"
    credential.write_text(write_key(ONE))
    credential.chmod(0o440)
    environ = {"K": f"{write_key(TWO)},{write_key(ONE)}", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    from_variable = Keys(SecretsSettings(key="env:K"), tmp_path, environ)
    assert [key.id for key in from_variable.load().keys] == [TWO.id, ONE.id]
    both = Keys(SecretsSettings(key="credential:seal", old_keys=("env:K",)), tmp_path, environ)
    assert [key.id for key in both.load().keys] == [ONE.id, TWO.id]
    # What the operator is in charge of is not written.
    assert [key.id for key in both.renew().keys] == [ONE.id, TWO.id]
    assert "secrets.old_keys" in both.describe_removal((TWO.id,))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("elsewhere", "is none of file:/PATH"),
        ("file:relative", "is none of file:/PATH"),
        ("credential:../x", "is none of file:/PATH"),
        ("credential:seal", "LoadCredential"),
        ("env:MISSING", "not set"),
        ("file:/none/of/that/name", "No such file"),
    ],
)
def test_bad_places_are_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        Keys(SecretsSettings(key=text), tmp_path, {}).load()
    assert "secrets.key" in caught.value.message


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    given = write(tmp_path / "k", write_key(ONE), 0o644)
    with pytest.raises(BadRequest, match="chmod 600"):
        Keys(SecretsSettings(key=given), tmp_path, {}).load()


async def test_server_with_the_wrong_key_refuses_to_start_and_changes_nothing(tmp_path: Path) -> None:
    one = Settings(secrets=SecretsSettings(key=write(tmp_path / "one", write_key(ONE))))
    two = Settings(secrets=SecretsSettings(key=write(tmp_path / "two", write_key(TWO))))
    data_dir = tmp_path / "data"
    async with open_server("127.0.0.1:0", data_dir, settings=one) as server:
        await server.service.registrations._repo.commit(Write().put(KEY, VOLUME, revision=0))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_server("127.0.0.1:0", data_dir, settings=two):
            pass
    error = find_error(caught.value)
    assert isinstance(error, StoreUnavailable)
    for part in (KEY, ONE.id, TWO.id, "secrets.old_keys", "Nothing was changed"):
        assert part in error.message
    # The right key is back: nothing is lost. With both, the old one may go.
    async with open_server("127.0.0.1:0", data_dir, settings=one) as server:
        assert read_secret(server.feed.view.volumes.get("default", "data")) == {"p": "hush-1"}
    both = Settings(secrets=SecretsSettings(key=f"file:{tmp_path}/two", old_keys=(f"file:{tmp_path}/one",)))
    async with open_server("127.0.0.1:0", data_dir, settings=both) as server:
        sealing = server.service.sealing
        assert sealing is not None
        with anyio.fail_after(20):
            while sealing.progress.phase != "done":
                await anyio.sleep(0.01)
        assert f"the old key {ONE.id} may go" in sealing.progress.text
    async with open_server("127.0.0.1:0", data_dir, settings=two) as server:
        assert read_secret(server.feed.view.volumes.get("default", "data")) == {"p": "hush-1"}


def find_error(error: BaseException) -> BaseException:
    return find_error(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def read_secret(record: object) -> dict[str, str]:
    volume = getattr(record, "value", None)
    assert isinstance(volume, Volume)
    return volume.secrets.values
