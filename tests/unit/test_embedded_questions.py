"""A question that the agent in the server's process asks at once counts like any call; a stranger is not asked."""

from __future__ import annotations

import anyio
import pytest
from engine_kit import NODE
from many_volumes import Line
from writing_kit import writing

from moorage.model import steps
from moorage.serve.embedded import EmbeddedClient

pytestmark = pytest.mark.anyio


async def test_it_is_counted_timed_and_among_the_recent_calls() -> None:
    async with writing() as site:
        service = site.kit.service
        line = Line(site.kit)
        await site.send(line, site.make_request(is_create=False))
        assert service.nodes.driver_calls.calls == {("ValidateVolume", "OK"): 1}
        assert service.nodes.driver_calls.seconds["ValidateVolume"].count == 1
        (call,) = service.diagnostics.calls
        assert (call.node_id, call.outcome) == (NODE, "Done")
        assert call.record.startswith("questions/")
        # It was on no list.
        assert service.reconciler.handouts(f"steps@{NODE}").version == service.reconciler.epoch


async def test_an_agent_whose_identity_was_taken_away_is_not_asked() -> None:
    async with writing() as site:
        service = site.kit.service
        stranger = EmbeddedClient(site.kit.app, service, f"moorage-node-{'b' * 43}")
        asked: list[object] = []

        class Steps:
            async def try_now(self, assignment: object) -> None:
                asked.append(assignment)

        stranger.offer(NODE, Steps())
        line = Line(site.kit)
        with anyio.fail_after(5):
            await site.send(line, site.make_request(is_create=False))
        # The question went the way of every call.
        assert not asked
        assert [type(step) for step in site.kit.driver.calls] == [steps.ValidateVolume]
        assert service.nodes.driver_calls.calls == {("ValidateVolume", "OK"): 1}
