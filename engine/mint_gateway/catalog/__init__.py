"""The catalog of all adapters that can be named: registering, listing, resolving and retiring them durably."""
