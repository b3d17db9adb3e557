"""The control plane: Kopf handlers that mark, one loop that observes, plans and applies."""
