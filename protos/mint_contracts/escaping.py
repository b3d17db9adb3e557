"""Text from outside, made safe to show to people."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def escape_controls(text: str) -> str:
    """Return the text with control characters other than tabs and newlines escaped, as in \\x1b.

    A terminal would obey them, and clear itself, say, or change its title.
    """
    return text.translate(_CONTROLS)
