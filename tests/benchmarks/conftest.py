"""The shared run, for benchmarks that read one."""

from tests.fixtures_ring import trained

__all__ = ["trained"]
