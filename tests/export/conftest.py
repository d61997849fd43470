"""The small run of the ring, shared."""

from tests.fixtures_ring import exported, exported_copy, kinds, trained, trained_copy

__all__ = ["exported", "exported_copy", "kinds", "trained", "trained_copy"]
