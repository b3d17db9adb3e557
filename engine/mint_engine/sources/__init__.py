"""Where adapters and bases come from: listed, opened and copied to this machine."""
