"""Others' words, as they may be shown to people."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def legible(text: str) -> str:
    """The text, with control characters but tabs and ends of lines written out: \\x1b.

    A terminal takes them for orders, to clear itself, say, or to have another title.
    """
    return text.translate(_CONTROLS)
