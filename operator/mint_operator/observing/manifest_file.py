"""Reading a manifest that a wave names: whole, over the network, within bounds. Blocks: call it in a thread."""

from mint_contracts.backends import backend
from mint_contracts.errors import InvalidRequest, SourceForbidden, SourceUnavailable
from mint_contracts.source import Source, locate

SCHEMES = ("s3", "gs", "https", "http")  # what the operator can reach; claims and images are the engines'
MOST_BYTES = 4 << 20
READ_S = 60.0


def fetch(uri: str) -> bytes:
    """Its bytes. Raises SourceForbidden, SourceUnavailable, or InvalidRequest for more than MOST_BYTES."""
    place = locate(Source(uri=uri))
    if place.scheme not in SCHEMES:
        said = f"the operator reads it, and can reach only {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        raise SourceForbidden(f"manifest {uri}", said)
    storage = backend(place.scheme)
    path = uri if place.scheme in {"http", "https"} else f"{place.host}/{place.path}"
    try:
        with storage.files.open(path, "rb") as file:
            data: bytes = file.read(MOST_BYTES + 1)
    except storage.errors as error:
        raise SourceUnavailable(f"manifest {uri}", f"could not be read ({error}); trying again") from error
    if len(data) > MOST_BYTES:
        raise InvalidRequest(f"manifest {uri}", f"has more than {MOST_BYTES} bytes; make several waves")
    return data
