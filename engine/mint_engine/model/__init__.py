"""The resident base with many adapters: lean where it may be, generic otherwise."""
