"""Addresses as pods receive them, and as they are dialled."""

import pytest

from mint_contracts.addresses import bracketed


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("10.0.0.7:8470", "10.0.0.7:8470"),
        ("fd00::7:8470", "[fd00::7]:8470"),
        ("[fd00::7]:8470", "[fd00::7]:8470"),
        ("engine.pods.svc:8470", "engine.pods.svc:8470"),
    ],
)
def test_an_ipv6_address_is_dialled_in_brackets(address: str, dialled: str) -> None:
    assert bracketed(address) == dialled
