"""The limits of one engine's loads, and how often it looks at what it holds."""

import msgspec

from mint_engine.residency.slot_turns import SlotTerms


class ResidencyLimits(msgspec.Struct, frozen=True):
    """How much loads and waits at once, and for how long. Engines have the defaults."""

    workers: int = 4  # concurrent loads of local sources for waves, and threads that read them; as many for requests
    # The same for remote sources, which mostly wait for responses. An adapter of 4.4 MB took eight requests; with 50
    # ms per response, 4 workers loaded 5.6 adapters a second, 16 loaded 8.7 and 32 about 9.7 (two cores, fully loaded
    # with other work). The S3 client has twice as many connections.
    remote_workers: int = 16
    loads_waiting: int = 256
    requests_waiting: int = 1024  # for loads, or for a closed slot
    slot_wait_s: float = 10.0
    terms: SlotTerms = SlotTerms()
    poll_s: float = 2.0  # between two looks at slots and local sources
    audit_s: float = 5.0  # the shortest time between two audits
