"""How both ends of a gRPC connection between our own programs behave: one side's pings are within the other's limits.

A server with gRPC's defaults takes a client that pings more often than every five minutes for an attacker, and ends
the whole connection with every stream on it (too_many_pings): the silence of one cold load would cost its neighbours
their answers. https://github.com/grpc/grpc/blob/master/doc/keepalive.md
"""

KEEPALIVE_MS = 10_000  # a peer that vanished without a word is noticed after this and the next
KEEPALIVE_TIMEOUT_MS = 10_000  # a ping comes after what is sent before it, by links that are slow, too

# A server closes a connection that has carried no call for so long: longer than load balancers keep theirs (Google's
# 600 s), so that none sends a request into one that is just being closed.
# https://cloud.google.com/load-balancing/docs/https#timeout-keepalive-backends
IDLE_MS = 660_000

# Of pings gRPC has a limit of its own, a minute, whatever the first says. A peer's core answers them, however long
# its Python is held up.
_UNANSWERED = (
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_time_ms", 6 * KEEPALIVE_MS),
    *_UNANSWERED,
)

MOST_TOOL_CHARACTERS = 65_536  # of all functions of a chat: what reads them may take the square of it

MOST_STOPS = 16  # strings that end an answer

MOST_ROUTE_BYTES = 64 << 20  # that one Generate tells, and one ForwardBackward takes

# ForwardBackward's most tokens, 32 bytes each (two numbers of five bytes, three floats). A gateway takes no more,
# as it has many clients' calls at a time; an engine that trains takes their routes too.
MOST_TOKEN_BYTES = 8 << 20
GATEWAY_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.max_receive_message_length", MOST_TOKEN_BYTES),)
TRAINER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MOST_TOKEN_BYTES + MOST_ROUTE_BYTES),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    *_UNANSWERED,
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a load may be silent for minutes
)
