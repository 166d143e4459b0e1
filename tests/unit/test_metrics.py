"""The metrics page: both forms, every metric of the catalogue and no other, labels from closed sets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from app_asking import ask
from engine_kit import NODE, running_kit
from prometheus_client.parser import text_string_to_metric_families

from moorage.api.http import Answer, Request
from moorage.api.metric_catalog import BY_NAME, METRICS
from moorage.api.metrics import write_json
from moorage.engine.driver_calls import DriverCalls
from moorage.model.assignment import MountedReport, MountFailedReport, StepReport
from moorage.model.claim import Claim
from moorage.model.ids import ClaimId, Revision
from moorage.model.meters import Histogram, Sample
from moorage.model.steps import Done, Failed
from moorage.model.volume import Fault
from moorage.serve.server import open_server

pytestmark = pytest.mark.anyio
DOCS = Path(__file__).parents[2] / "docs"


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Any]:
    async with open_server("127.0.0.1:0", tmp_path) as server:
        yield server


async def get(app: Any, path: str, **query: str) -> Answer:
    answer: Answer = await app.answer(Request(method="GET", path=path, parts=tuple(path.split("/")[1:]), query=query))
    return answer


def read_text(answer: Answer) -> dict[str, Any]:
    """Prometheus families by our names, as their own parser reads them."""
    assert answer.content_type is not None
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.body.decode())
    return {f"{f.name}_total" if f.type == "counter" else f.name: f for f in families}


async def test_a_server_tells_every_metric_of_the_catalogue(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await get(server.app, "/v1/volumes", type="csi")
        found = read_text(await get(server.app, "/v1/metrics", format="prometheus"))
    assert set(found) == set(BY_NAME)
    for metric in METRICS:
        assert found[metric.name].type == metric.kind
        assert found[metric.name].documentation == metric.meaning
    bare = {metric.name for metric in METRICS if not metric.labels}
    assert not [name for name in bare if len(found[name].samples) != 1], "a metric without a source"
    assert found["moorage_process_resident_bytes"].samples[0].value > 1 << 20
    assert found["moorage_process_open_files"].samples[0].value > 3
    assert found["moorage_feed_lag_revisions"].samples[0].value == 0
    requests = {tuple(s.labels.values()): s.value for s in found["moorage_http_requests_total"].samples}
    assert requests == {("GET", "/v1/volumes", "200"): 1}


async def test_both_forms_tell_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for _ in range(3):
            await get(server.app, "/v1/nodes")
        answer = await get(server.app, "/v1/metrics")
        told = json.loads(answer.body)
    assert answer.content_type == "application/json"
    assert set(told) == {"Counters", "Gauges", "Points", "PrecisionGauges", "Samples", "Timestamp"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC", told["Timestamp"])
    labels = {"method": "GET", "route": "/v1/nodes", "status": "200"}
    (counter,) = [c for c in told["Counters"] if c["Labels"] == labels]
    assert {"Name", "Labels", "Count", "Max", "Mean", "Min", "Rate", "Stddev", "Sum"} == set(counter)
    assert (counter["Name"], counter["Count"], counter["Sum"]) == ("moorage_http_requests_total", 3, 3.0)
    (seconds,) = [s for s in told["Samples"] if s["Labels"] == {"route": "/v1/nodes"}]
    assert seconds["Count"] == 3
    assert 0 < seconds["Min"] <= seconds["Mean"] <= seconds["Max"] < 5
    assert {g["Name"] for g in told["Gauges"]} >= {"moorage_http_waiters", "moorage_store_revision"}


async def test_records_and_driver_calls_are_told() -> None:
    async with running_kit() as kit:
        capability = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
        volume = {"ID": "v", "Name": "v", "PluginID": "hostpath", "RequestedCapabilities": [capability]}
        assert (await ask(kit, "PUT", "/v1/volume/csi/v/create", {"Volumes": [volume]})).status == 200
        mount = {"Name": "data", "Source": "v", "AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
        start = {"Allocation": {"Name": "a", "NodeID": NODE, "Volumes": [mount]}}
        assert (await ask(kit, "PUT", "/v1/allocations", start)).status == 200
        with anyio.fail_after(10):
            while not any(_is_mounted(record.value) for record in kit.repo.view.claims):
                await anyio.sleep(0.01)
            # What a mount settles afterwards is written in the next turns.
            while kit.service.reconciler.measure_queues()["to_write"]:
                await anyio.sleep(0.01)
        values = {(s.name, s.labels): s.value for s in kit.service.meters.read()}
    assert values["moorage_volumes", ("ready",)] == 1
    assert values["moorage_claims", ("mounted",)] == 1
    assert values["moorage_nodes", ("ready",)] == 1
    assert values["moorage_plugins", ("schedulable",)] == 1
    assert values["moorage_driver_calls_total", ("CreateVolume", "OK")] == 1
    assert values["moorage_driver_calls_total", ("Mount", "OK")] == 1
    assert values["moorage_reconciler_queue", ("to_write",)] == 0
    assert values["moorage_feed_revision", ()] == kit.repo.view.revision


def _is_mounted(claim: Claim) -> bool:
    return type(claim.state).__name__ == "Mounted"


async def test_no_client_can_make_a_label(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path in ("/v1/volume/csi/secret-name", "/nowhere/at/all"):
            for method in ("GET", "BREW", "M-SEARCH"):
                await server.app.answer(Request(method=method, path=path, parts=tuple(path.split("/")[1:])))
        samples = [s for s in server.service.meters.read() if s.name.startswith("moorage_http_request")]
    assert {s.labels[0] for s in samples if s.name == "moorage_http_requests_total"} == {"GET", "other"}
    assert {s.labels[-2 if len(s.labels) > 1 else 0] for s in samples} == {"/v1/volume/csi/:id", "none"}


async def test_a_blocking_query_is_not_a_slow_one() -> None:
    async with running_kit() as kit:
        await ask(kit, "GET", f"/v1/nodes?index={kit.repo.view.revision + 5}&wait=50ms")
        await ask(kit, "GET", "/v1/plugins")
        routes = {s.labels for s in kit.service.meters.read() if s.name == "moorage_http_request_seconds"}
    assert ("/v1/plugins",) in routes
    assert ("/v1/nodes",) not in routes


async def test_reports_make_no_labels_either() -> None:
    calls = DriverCalls()
    fault = Fault(method="evil{}", status="😈", message="x", final=True, at_ns=1)
    known = Fault(method="StageVolume", status="INTERNAL", message="x", final=True, at_ns=1)
    calls.note(
        (
            StepReport(key="k", revision=Revision(1), outcome=Failed(fault=fault), took_s=0.2),
            StepReport(key="k", revision=Revision(1), outcome=Done(), took_s=0.01),
            MountFailedReport(claim_id=ClaimId("c"), revision=Revision(1), fault=known),
            MountedReport(claim_id=ClaimId("c"), revision=Revision(1), path="/a", publish_path="/b"),
        ),
        {},
    )
    assert calls.calls == {
        ("other", "other"): 1,
        ("other", "OK"): 1,
        ("StageVolume", "INTERNAL"): 1,
        ("Mount", "OK"): 1,
    }
    assert calls.seconds["other"].count == 2


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        found.note(value)
    assert (found.counts, found.count, found.total, found.min, found.max) == ([2, 2, 1], 5, 12.0, 0.5, 7.0)
    assert math.isclose(found.deviation, 2.6315, rel_tol=1e-3)


def test_a_name_that_is_not_in_the_catalogue_is_a_fault() -> None:
    with pytest.raises(KeyError):
        write_json([Sample("moorage_unknown", 1)], 0.0, 1.0)


def test_the_catalogue_is_well_formed() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"moorage_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not metric.alert or metric.name in metric.alert


def test_the_page_about_limits_names_each_setting_and_each_count() -> None:
    from moorage.config_security import LimitsSettings

    rows = [line for line in (DOCS / "limits.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    settings = set(re.findall(r"`(\w+)`", " ".join(row.split(" | ")[1] for row in rows[1:])))
    assert settings == set(LimitsSettings.__struct_fields__)
    counts = set(re.findall(r"`(\w+)` \|$", "\n".join(rows), re.MULTILINE))
    sources = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "src" / "moorage").rglob("*.py"))
    assert len(counts) > 12
    assert [name for name in counts if f'"{name}"' not in sources] == []
