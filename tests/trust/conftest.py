"""The fixtures of this room."""

from tests.trust.world import empty_world, world

__all__ = ["empty_world", "world"]
