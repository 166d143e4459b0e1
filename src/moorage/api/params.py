"""Query parameters: parsed in the recorded order, each refusal with the recorded text.

Source: contract volumes-api §1.4, §1.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from moorage.api.http import Request, Waited
from moorage.errors import BadRequest, Rejected
from moorage.model.secret_refs import check_references
from moorage.model.volume import Secrets

REGION = "global"
WAIT_MAX_S = 300.0
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UINT64_MAX = 2**64 - 1


class ReadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a read may ask for. ``index`` 0: do not wait; ``wait_s``: how long at most, before jitter; the rest of
    waiting as the request has it."""

    namespace: str = "default"
    prefix: str = ""
    per_page: int = 0
    next_token: str = ""
    filter: str = ""
    is_reversed: bool = False
    index: int = 0
    wait_s: float = WAIT_MAX_S
    is_asking: bool = False
    waited: Waited | None = None


def parse_bool(text: str) -> bool | None:
    """A truth value in Go's spellings, or None."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def parse_duration_s(text: str) -> float | None:
    """A duration such as ``1m30s`` in seconds, or None. The unit is mandatory except for ``0``."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(rest):
        found = _DURATION_PART.match(rest, position)
        if found is None:
            return None
        total += float(found[1]) * _UNITS[found[2]]
        position = found.end()
    return sign * total if position else None


def check_region(query: Mapping[str, str]) -> None:
    """The region is ours, or none is named. Raises Rejected with the recorded text."""
    if query.get("region", "") not in ("", REGION):
        raise Rejected("No path to region", code="region")


def parse_read(request: Request) -> ReadOptions:
    """The options of a read. Raises BadRequest with the recorded text; Rejected for an unknown region."""
    query = request.query
    if query.get("stale", "") and parse_bool(query["stale"]) is None:
        raise BadRequest("Expect `true` or `false` for `stale` query string parameter")
    per_page = _parse_per_page(query.get("per_page", ""))
    wait = query.get("wait", "")
    wait_s = parse_duration_s(wait) if wait else 0.0
    if wait_s is None:
        raise BadRequest("Invalid wait time")
    index = query.get("index", "")
    if index and not (index.isascii() and index.isdigit() and int(index[:21]) <= _UINT64_MAX and len(index) <= 20):
        raise BadRequest("Invalid index")
    check_region(query)
    return ReadOptions(
        namespace=query.get("namespace", "") or "default",
        prefix=query.get("prefix", ""),
        per_page=per_page,
        next_token=query.get("next_token", ""),
        filter=query.get("filter", ""),
        is_reversed=query.get("reverse", "") == "true",
        index=int(index) if index else 0,
        wait_s=WAIT_MAX_S if wait_s <= 0 else min(wait_s, WAIT_MAX_S),
        is_asking=request.is_asking,
        waited=request.waited,
    )


def parse_epoch(request: Request) -> int:
    """Whose index an agent gives back with its query; 0: it wants the whole list. Raises BadRequest."""
    text = request.query.get("epoch", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _UINT64_MAX):
        raise BadRequest("Invalid epoch")
    return int(text)


def _parse_per_page(text: str) -> int:
    if not text:
        return 0
    digits = text[1:] if text[0] in "+-" else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12 or not -(2**31) <= int(text) < 2**31:
        raise BadRequest("Expect a number for `per_page` query string parameter")
    return int(text)


def check_page_size(options: ReadOptions) -> None:
    """A page has no negative size; where a driver pages it is the driver's to refuse. Raises BadRequest."""
    if options.per_page < 0:
        raise BadRequest("Expect a number for `per_page` query string parameter that is not negative")


def parse_namespace(request: Request) -> str:
    """The namespace of a write, after the region was checked."""
    check_region(request.query)
    return request.query.get("namespace", "") or "default"


def parse_secrets(request: Request) -> dict[str, str]:
    """The secrets header: ``k=v,k=v``; a pair without ``=`` is dropped, the first ``=`` splits. Source: §1.2."""
    found: dict[str, str] = {}
    for pair in request.header("x-nomad-csi-secrets").split(","):
        name, equals, value = pair.partition("=")
        if equals and name:
            found[name] = value
    return found


def read_secrets(values: Mapping[str, str]) -> Secrets:
    """Secrets as they were given. Raises BadRequest for one that begins like a reference and is none."""
    check_references(values)
    return Secrets(dict(values))


def split_path(path: bytes) -> tuple[str, ...]:
    """A path's segments, each percent-decoded."""
    return tuple(unquote_to_bytes(path).decode("utf-8", "replace").split("/")[1:])


def find_query(raw: bytes) -> dict[str, str]:
    """First values of a raw query string; a bare name has an empty value, empty pairs are skipped."""
    found: dict[str, str] = {}
    for pair in raw.replace(b"+", b" ").split(b"&"):
        name, _, value = pair.partition(b"=")
        if name:
            key = unquote_to_bytes(name).decode("utf-8", "replace")
            found.setdefault(key, unquote_to_bytes(value).decode("utf-8", "replace"))
    return found
