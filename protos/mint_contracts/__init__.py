"""What the packages agree on: protos, Redis records and keys, custom resource structs, errors."""
