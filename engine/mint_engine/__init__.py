"""The engine: one resident base model, its adapter slots, and the gRPC server in front of them."""
