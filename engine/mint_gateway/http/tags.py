"""Finding tags in growing text: pure."""


def may_begin(tag: str, text: str) -> int:
    """Return where a possible beginning of the tag starts at the text's end, with the white space before it."""
    begun = next((n for n in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:n])), 0)
    return len(text[: len(text) - begun].rstrip())
