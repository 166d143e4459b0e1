"""gRPC with the older of its two ways to wait for sockets: import it from here.

Its newer way, event engines of its own, hands each message over between more threads. For a call over a unix socket
between two Python processes that is 480 to 530 µs instead of 390 to 410, and 230 µs of CPU at the client and 340 at
the server instead of 165 and 260 (grpcio 1.85, the kernel included).
gRPC reads its choice once, from the environment, while it is imported. A user's own choice stands; programs that are
started later do not inherit ours.
"""

from __future__ import annotations

import os

NAME = "GRPC_EXPERIMENTS"
# A name that a later gRPC does not know is told on stderr, and changes nothing; a test finds it out.
LEAN = "-event_engine_client,-event_engine_listener"

_is_ours = NAME not in os.environ
if _is_ours:
    os.environ[NAME] = LEAN
try:
    import grpc
    import grpc.aio
finally:
    if _is_ours:
        del os.environ[NAME]

__all__ = ["LEAN", "NAME", "grpc"]
