"""Errors of clusters, whose messages say what to do."""


class ClusterError(RuntimeError):
    """A cluster could not be created, found or deleted; the message says which part failed and what to do."""


class CommandFailedError(ClusterError):
    """A program exited with a status other than 0; the message has the end of its output."""
