"""What a start costs, the flags, what is shown, and the client underneath."""

from __future__ import annotations

import argparse
import io
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.cli.commands import COMMANDS
from moorage.cli.flags import add_global_flags, make_endpoint, normalize_flags, read_pairs, split_leading_flags
from moorage.cli.main import main
from moorage.cli.mounts import choose_capability, choose_node, find_meant
from moorage.cli.output import Output, Progress, format_bytes, format_elapsed, show
from moorage.client.sync import Answer, Client, Endpoint, path_of
from moorage.errors import BadRequest, MoorageError, NotFound, PluginUnavailable, Unavailable

HEAVY = ("grpc", "aiohttp", "structlog", "rich", "lark", "anyio", "msgspec", "uvicorn", "apsw", "moorage.serve")


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize(
    "words", [["volume", "status", "-json"], ["mount", "a", "/b"], ["-h"], ["volume", "create", "-h"]]
)
def test_start_imports_nothing_heavy(words: list[str]) -> None:
    words = [*words, "-address", "unix:///nowhere.sock"] if "-h" not in words else words
    done = run_python(f"from moorage.cli.main import main; main({words!r})", "-X", "importtime")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "moorage.cli.main" in imported
    assert sorted(name for name in imported if name in HEAVY) == []


def test_an_agent_loads_nothing_of_the_server() -> None:
    """Its memory is the consumer's: what it imports at its start, and never uses, was a quarter of it."""
    got = run_python("import sys, moorage.serve.node; print(*sys.modules)")
    assert got.returncode == 0, got.stderr
    found = got.stdout.split()
    assert "structlog" in found
    of_server = ("moorage.api", "moorage.engine", "moorage.state", "uvicorn", "re2", "cryptography", "rich", "apsw")
    assert [name for name in found if name in of_server] == []


def test_every_command_is_in_its_module_and_helps_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([*command.words, "-h"]) == 0
        out = capsys.readouterr().out
        assert "Example: moorage " in out, command
        assert "--json" in out, command


# -- flags -----------------------------------------------------------------------------------------------------------


def test_both_spellings_are_one() -> None:
    assert normalize_flags(["-force", "--force", "-h", "-", "-1", "-secret", "a=-b", "--", "-x1"]) == [
        *("--force", "--force", "-h", "-", "-1", "--secret", "a=-b", "--", "-x1"),
    ]


def test_flags_in_front_of_the_command() -> None:
    assert split_leading_flags(["--address", "u", "--json", "--region=r", "volume", "status"]) == (
        ["--address", "u", "--json", "--region=r"],
        ["volume", "status"],
    )


def parse_global(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_global_flags(parser)
    return parser.parse_args(words)


def test_flag_wins_over_ours_and_ours_over_the_others() -> None:
    environment = {"NOMAD_ADDR": "http://n", "MOORAGE_ADDR": "http://m", "NOMAD_TOKEN": "t", "NOMAD_SKIP_VERIFY": "1"}
    assert make_endpoint(parse_global("--address", "http://f"), environment).address == "http://f"
    endpoint = make_endpoint(parse_global(), environment)
    assert (endpoint.address, endpoint.token, endpoint.tls.skip_verify) == ("http://m", "t", True)
    assert make_endpoint(parse_global(), {}).address == "http://127.0.0.1:4646"


def test_an_endpoint_does_not_print_its_token() -> None:
    assert "hush" not in repr(Endpoint(token="hush"))


def test_pairs_without_equals_are_refused_unseen() -> None:
    with pytest.raises(BadRequest) as caught:
        read_pairs("secret", ["a=b", "hush"])
    assert "number 2" in caught.value.message
    assert "hush" not in caught.value.message


# -- choices ---------------------------------------------------------------------------------------------------------


def volume(*modes: str, in_use: str = "") -> dict[str, object]:
    pairs = [{"AccessMode": mode, "AttachmentMode": "file-system"} for mode in modes]
    return {"ID": "v", "RequestedCapabilities": pairs, "AccessMode": in_use}


@pytest.mark.parametrize(
    ("offered", "is_read_only", "chosen"),
    [
        (volume("single-node-writer"), False, "single-node-writer"),
        (volume("single-node-writer"), True, "single-node-writer"),
        (volume("multi-node-reader-only", "multi-node-multi-writer"), False, "multi-node-multi-writer"),
        (volume("single-node-writer", "multi-node-reader-only"), True, "multi-node-reader-only"),
        (
            volume("single-node-writer", "multi-node-multi-writer", in_use="multi-node-multi-writer"),
            False,
            "multi-node-multi-writer",
        ),
    ],
)
def test_capability_that_fits(offered: dict[str, object], is_read_only: bool, chosen: str) -> None:
    assert choose_capability(offered, is_read_only=is_read_only, access_mode=None)["AccessMode"] == chosen


def test_only_readers_and_no_read_only_is_refused() -> None:
    with pytest.raises(BadRequest, match="add -read-only"):
        choose_capability(volume("multi-node-reader-only"), is_read_only=False, access_mode=None)


def test_node_of_this_host() -> None:
    nodes = [{"ID": "1", "Name": "a", "Status": "ready"}, {"ID": "2", "Name": "b", "Status": "ready"}]
    assert choose_node(nodes, "b.example.org")["ID"] == "2"
    assert choose_node(nodes[:1], "elsewhere")["ID"] == "1"
    with pytest.raises(BadRequest, match="-node: a, b"):
        choose_node(nodes, "elsewhere")
    with pytest.raises(PluginUnavailable):
        choose_node([{"ID": "1", "Name": "a", "Status": "down"}], "a")


def test_a_path_wins_over_a_volume_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"ID": "1", "Mounts": [{"Volume": "data", "Path": "/elsewhere"}]},
        {"ID": "2", "Mounts": [{"Volume": "x", "Path": str(tmp_path / "data")}]},
    ]
    assert [row["ID"] for row in find_meant(rows, "data")] == ["2"]


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_shown_values() -> None:
    assert [format_bytes(size) for size in (0, 1, 1536, 1024**3, 2**70)] == [
        "-",
        "1 B",
        "1.5 KiB",
        "1 GiB",
        "1024 EiB",
    ]
    assert (format_elapsed(3.21), format_elapsed(125)) == ("3.2 s", "2 min 5 s")
    assert [show(value) for value in (True, False, None, "", 0, "a\x1b[31m\nb")] == [
        *("true", "false", "-", "-", "0", "a\\x1b[31m\\x0ab"),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_clears_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err, quiet = Terminal(), io.StringIO()
    with Progress(Output(io.StringIO(), quiet), "working"):
        pass
    assert quiet.getvalue() == ""
    output = Output(io.StringIO(), err)
    seen = threading.Event()
    monkeypatch.setattr(err, "flush", seen.set)
    with Progress(output, "working"):
        assert seen.wait(10)
    assert "working …" in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[K")


def test_a_table_on_a_terminal_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    Output(out, io.StringIO()).table(("ID",), [("[bold]x[/bold]",)])
    assert "[bold]x[/bold]" in out.getvalue()


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "moorage", "-h"], stdout=write, stderr=subprocess.PIPE, timeout=50, check=False
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


# -- the client ------------------------------------------------------------------------------------------------------


def test_paths_are_one_segment_each() -> None:
    assert path_of("volume", "csi", "a/b c[0]%é") == "/v1/volume/csi/a%2Fb%20c%5B0%5D%25%C3%A9"


@pytest.fixture
def canned(tmp_path: Path) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """A unix socket that answers with what the test puts in: (address, answers, requests)."""
    answers: list[bytes] = []
    requests: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while answers:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = self.rfile.readline()
                    if not line:
                        return
                    head += line
                # The body too: closing before it has come would break the client's pipe instead of answering it.
                sent = [int(n[15:]) for n in head.splitlines() if n.lower().startswith(b"content-length:")]
                self.rfile.read(sum(sent))
                requests.append(head)
                answer = answers.pop(0)
                self.wfile.write(answer)
                if b"\r\n\r\n" not in answer:
                    return

    class Listener(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    path = str(tmp_path / "s")
    with Listener(path, Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"unix://{path}", answers, requests
        listener.shutdown()
        thread.join()


Canned = tuple[str, list[bytes], list[bytes]]


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_unix_socket_and_headers(canned: Canned) -> None:
    address, answers, requests = canned
    answers.append(http("200 OK", b"[]", "X-Nomad-Index: 7", "X-Nomad-NextToken: n"))
    with Client(Endpoint(address=address, token="t", namespace="dev")) as client:
        assert client.get("/v1/volumes") == Answer(body=b"[]", index=7, next_token="n")
    assert requests[0].startswith(b"GET /v1/volumes?namespace=dev HTTP/1.1\r\n")
    assert b"X-Nomad-Token: t" in requests[0]


@pytest.mark.parametrize(
    ("answer", "kind", "message", "code"),
    [
        (http("404 Not Found", b"volume not found"), NotFound, "volume not found", "not_found"),
        (http("500 Oops", b" 1 error \n"), MoorageError, "1 error", "server_error"),
        (http("503 Busy"), Unavailable, "the server answered 503 Busy", "unavailable"),
        (
            http("409 C", b'{"detail": "in use", "code": "volume_in_use"}', "Content-Type: application/problem+json"),
            MoorageError,
            "in use",
            "volume_in_use",
        ),
        (b"garbage\r\n", Unavailable, "garbage", "unreachable"),
        (b"", Unavailable, "cannot reach", "unreachable"),
    ],
)
def test_statuses_become_errors(
    canned: Canned, answer: bytes, kind: type[MoorageError], message: str, code: str
) -> None:
    address, answers, _ = canned
    answers.append(answer)
    with Client(Endpoint(address=address)) as client, pytest.raises(kind) as caught:
        client.write("PUT", "/v1/x", body={})
    assert message in caught.value.message
    assert caught.value.code == code


def test_a_read_on_a_closed_connection_is_repeated_and_a_write_is_not(canned: Canned) -> None:
    address, answers, requests = canned
    answers += [http("200 OK", b"1"), b"", http("200 OK", b"2")]
    with Client(Endpoint(address=address)) as client:
        assert client.get("/a").json() == 1
        assert client.get("/b").json() == 2
        assert len(requests) == 3
        answers += [b"", http("200 OK")]
        with pytest.raises(Unavailable):
            client.write("PUT", "/c")
        assert len(requests) == 4


def test_a_token_with_a_line_break_is_refused_unseen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(Endpoint(address=address, token="hush\nX: y")) as client, pytest.raises(BadRequest) as caught:
            client.get("/v1/volumes")
    assert "hush" not in caught.value.message


def test_an_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(MoorageError, match="is this the address of a moorage server"):
        Answer(body=b"<html>").json()
