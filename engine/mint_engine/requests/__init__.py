"""Requests as clients send them, tokens chosen, and answers as clients get them."""
