"""One engine over several ranks: each a process with a share of the base's layers and of every adapter."""
