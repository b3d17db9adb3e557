"""Adapter files: checks PEFT's files, and packs them into one run in a slot's layout."""
