"""Decides which engines hold which adapters. Pure; each placement policy has its own file."""
