"""The embedded driver: volumes are plain directories of this host, served over CSI on a unix socket.

It runs as a process of its own and knows nothing of the rest of moorage; nothing in the engine knows it.
A directory cannot enforce a size: ``capacity_bytes`` is what was asked for and is recorded, not a limit on writes.
"""
