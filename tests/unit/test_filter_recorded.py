"""Filters against what was recorded: a server's answers on its 18 volumes, and the reference library's verdicts.

``recorded.jsonl``: filters with the IDs or the error the recorded server answered, or what this project answers
better on purpose (``note`` says why). ``judged.jsonl``: per filter the verdict on each of four made-up volumes:
``true``, ``false``, ``E`` and an evaluation error, or one ``P`` and a parse error (go-bexpr 0.1.17).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.errors import BadRequest
from moorage.rules.filter import compile_filter

DATA = Path(__file__).parent / "data" / "filter"
PARSE = "failed to create result paginator: failed to read filter expression: "
EVALUATE = "failed to read result page: "


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


RECORDED = _lines("recorded.jsonl")
RECORDED_VOLUMES = _lines("recorded-volumes.jsonl")
JUDGED = _lines("judged.jsonl")
JUDGED_VOLUMES = _lines("judged-volumes.jsonl")


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["filter"])
def test_a_recorded_step_gets_its_answer(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(BadRequest) as caught:
            _select(case["filter"])
        assert caught.value.message == case["error"]
    else:
        assert _select(case["filter"]) == case["ids"]


def _select(text: str) -> list[str]:
    matches = compile_filter(text).matches
    return [volume["ID"] for volume in RECORDED_VOLUMES if matches(volume)]


def test_the_records_are_all_there() -> None:
    assert len(RECORDED) == 92
    assert len(RECORDED_VOLUMES) == 18
    assert len(JUDGED) > 700


def test_every_judged_filter_gets_the_same_verdicts() -> None:
    wrong = [case["filter"] for case in JUDGED if _judge(case["filter"]) != case["results"]]
    assert wrong == []


def _judge(text: str) -> list[str]:
    try:
        matches = compile_filter(text).matches
    except BadRequest as error:
        return [error.message.replace(PARSE, "P ", 1)]
    return [_verdict(matches, volume) for volume in JUDGED_VOLUMES]


def _verdict(matches: Any, volume: dict[str, Any]) -> str:
    try:
        return "true" if matches(volume) else "false"
    except BadRequest as error:
        return error.message.replace(EVALUATE, "E ", 1)
