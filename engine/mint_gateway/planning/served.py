"""What engines refuse today of what would fit: plans are made for what is to come too, and must say so."""


def refusal(ranks: int, nodes: int, *, float8: bool, unread: str) -> str:
    """Why no engine would start so, each reason with what would; "" where one would."""
    reasons = {
        "weights must be in bfloat16, float16 or float32": float8,
        unread: bool(unread),
        f"nodes have as many ranks each, and {ranks} of these devices are in {nodes} nodes": bool(ranks % nodes),
    }
    found = "; ".join(reason for reason, holds in reasons.items() if holds)
    return f"so far {found}" if found else ""
