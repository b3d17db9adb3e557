"""The digest that identifies a packed adapter's contents."""

from mint_engine.adapters.digests import Digesting, digest_of


def test_a_digest_is_blake3s_however_its_bytes_come() -> None:
    """Of no bytes, and of the input of the specification's own test vectors: 0, 1, ... 250, 0, 1, ..."""
    vector = memoryview(bytes(each % 251 for each in range(2049)))
    known = "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"
    assert (
        digest_of(memoryview(b"")) == f"blake3:{'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262'}"
    )
    assert digest_of(vector) == f"blake3:{known}"
    digesting = Digesting()
    for start in range(0, len(vector), 100):
        digesting.update(vector[start : start + 100])
    assert digesting.text == f"blake3:{known}"
