"""The catalog: every adapter that can be named, registered, listed, resolved, retired, and never lost."""
