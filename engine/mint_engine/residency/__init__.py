"""Which adapters are on which tier of this engine, and how they get into slots."""
