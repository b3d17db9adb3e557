"""Each reason is reported once per outage."""

from mint_contracts import reasons
from mint_contracts.reasons import Reasons


def test_a_reason_is_new_once_an_outage() -> None:
    known = Reasons()
    assert [known.is_new(OSError(why)) for why in ("refused", "refused", "wrong password", "refused")] == [
        True,
        False,
        True,
        False,
    ]
    known.forget()
    assert known.is_new(OSError("refused"))


def test_reasons_without_end_are_told_up_to_a_bound() -> None:
    known = Reasons()
    assert sum(known.is_new(OSError(f"port {port}")) for port in range(10 * reasons.MOST)) == reasons.MOST
