"""Who may send requests, and for what: API keys, their scopes, and TLS of both doors."""
