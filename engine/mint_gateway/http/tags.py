"""Finding tags in growing text: pure."""

MOST_SPACE = 4096
"""The most white space before a tag that is dropped, in characters. A model may write nothing else, and each token
takes time for all that is held."""


def may_begin(tag: str, text: str) -> int:
    """Return where a possible beginning of the tag starts at the text's end, with the white space before it."""
    begun = next((n for n in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:n])), 0)
    return end_before(text, len(text) - begun)


def end_before(text: str, tag: int) -> int:
    """Return where the text before a tag at `tag` ends: before white space, but no more than `MOST_SPACE`."""
    least = max(0, tag - MOST_SPACE)
    return least + len(text[least:tag].rstrip())
