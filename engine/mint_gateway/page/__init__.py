"""The gateway's web page: its files, and the JSON that it requests."""
