"""Which engines hold which adapters. Pure; each policy of placement in a file of its own."""
