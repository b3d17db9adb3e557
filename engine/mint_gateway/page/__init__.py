"""The gateway's web page: its three files, and the JSON that it asks for."""
