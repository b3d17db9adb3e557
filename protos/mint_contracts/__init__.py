"""Contracts that the packages share: protos, Redis records and keys, custom resource structs, errors."""
