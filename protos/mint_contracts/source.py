"""`Source`, the place that weights come from, and the check of its URI; used by admission, planner and engine."""

from urllib.parse import urlsplit

import msgspec

from mint_contracts.errors import SourceForbidden

LOCAL = ("file", "pvc")  # files are read in place
SCHEMES = (*LOCAL, "https", "http", "s3", "gs", "hf")
WRITABLE = (*LOCAL, "s3", "gs")  # schemes whose folders can be written


class Source(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A place of weights. `revision` pins an hf:// commit, tag or branch; elsewhere it distinguishes versions."""

    uri: str
    revision: str = ""


class Location(msgspec.Struct, frozen=True):
    """A checked URI: `host` is the claim, bucket, organisation or server; `path` has no leading slash."""

    scheme: str
    host: str
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return self.scheme in LOCAL


def locate(source: Source) -> Location:
    """Parse a source's URI and refuse one that may not be read.

    Raises SourceForbidden for a malformed URI, another scheme, credentials or queries in the URI, `..` in the path, a
    missing host, or hf:// without a revision (a moving branch would serve different weights under one name).
    """
    subject = f"source {source.uri!r}"
    try:
        parts = urlsplit(source.uri)
    except ValueError as error:  # an unbalanced bracket, or a host that is invalid after normalisation
        raise SourceForbidden(subject, f"is not a URI ({error}); write, say, pvc://claim/path") from None
    if parts.scheme not in SCHEMES:
        raise SourceForbidden(subject, f"scheme must be one of {', '.join(s + '://' for s in SCHEMES)}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise SourceForbidden(subject, "must carry no credentials, query or fragment; use secretRef for credentials")
    segments = [parts.netloc, *parts.path.split("/")]  # a claim named ".." would leave the folder of claims
    if any(segment in {"..", "."} for segment in segments) or "\\" in source.uri or "%" in source.uri:
        raise SourceForbidden(subject, "must be a plain path without '.', '..', '%' or backslashes")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise SourceForbidden(subject, "a file source must read file:///absolute/path")
    elif not parts.netloc:
        raise SourceForbidden(subject, f"must name a {'claim' if parts.scheme == 'pvc' else 'host or bucket'}")
    if parts.scheme == "hf" and not source.revision:
        raise SourceForbidden(subject, "an hf:// source needs spec revision, so that what is served cannot move")
    return Location(scheme=parts.scheme, host=parts.netloc, path=parts.path.strip("/"))


def child(root: Source, name: str) -> Source:
    """Return the source of `name` in the store `root`: its URI with the name appended, at the same revision."""
    return Source(uri=f"{root.uri.rstrip('/')}/{name}", revision=root.revision)


def parent(source: Source) -> str:
    """Return the URI of the folder that contains a source."""
    return source.uri.rstrip("/").rpartition("/")[0]
