"""Keys in memory: a source of keys for tests."""

from __future__ import annotations

from moorage.state.keyring import Keyring, SealKey, join_keys, make_key


class FixedKeys:
    """A source that holds its keys itself; ``renew`` puts one more before them. A ``state.resealing.KeySource``."""

    def __init__(self, *keys: SealKey) -> None:
        self.keys = list(keys)

    def load(self) -> Keyring:
        """The keys as they are."""
        return join_keys(self.keys, ())

    def renew(self) -> Keyring:
        """One more key, made of their number."""
        self.keys.insert(0, make_key(bytes([len(self.keys)]) * 32))
        return self.load()

    def describe(self) -> str:
        """A place of keys."""
        return "test:keys"

    def describe_removal(self, key_ids: tuple[str, ...]) -> str:
        """How to take keys away."""
        return f"forget {', '.join(key_ids)}"
