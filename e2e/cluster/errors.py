"""What can go wrong with a cluster, said in words that tell what to do."""


class ClusterError(RuntimeError):
    """A cluster could not be made, found or ended; the message says which part and what to do about it."""


class CommandFailedError(ClusterError):
    """A program ended with another status than 0; the message holds the end of what it said."""
