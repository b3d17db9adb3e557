"""Residency: which tier of this engine each adapter is in, and how adapters get into slots."""
