"""gRPC options for both ends of connections between MinT's programs: each side's pings are within the other's limits.

A server with gRPC's defaults takes a client that pings more often than every five minutes for an attacker, and closes
the connection with every stream on it (too_many_pings): one cold load's silence would end its neighbours' streams.
https://github.com/grpc/grpc/blob/master/doc/keepalive.md
"""

KEEPALIVE_MS = 10_000  # a peer that vanished silently is noticed after this plus KEEPALIVE_TIMEOUT_MS
KEEPALIVE_TIMEOUT_MS = 10_000  # a ping arrives after the data sent before it, also over slow links

# A server closes a connection without calls after this time. It is longer than load balancers keep theirs (Google's
# 600 s), so that none sends a request into a connection that is just being closed.
# https://cloud.google.com/load-balancing/docs/https#timeout-keepalive-backends
IDLE_MS = 660_000

# gRPC has a separate timeout for pings, a minute by default, whatever the first option says. A peer's gRPC core
# answers pings even while its Python code is held up.
_UNANSWERED = (
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_time_ms", 6 * KEEPALIVE_MS),
    *_UNANSWERED,
)

MOST_TOOL_CHARACTERS = 65_536  # of all functions of a chat: parsing them may take quadratic time

MOST_STOPS = 16  # stop strings of a request

MOST_ROUTE_BYTES = 64 << 20  # that one Generate returns, and one ForwardBackward takes

# The most tokens of a ForwardBackward at 32 bytes each (two integers of five bytes, three floats). A gateway accepts
# no more, as it has many clients' calls at a time. An engine also accepts what a gateway adds to a request, such as
# an adapter's source, and if it trains, routes.
MOST_TOKEN_BYTES = 8 << 20
GATEWAY_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.max_receive_message_length", MOST_TOKEN_BYTES),)
ENGINE_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.max_receive_message_length", MOST_TOKEN_BYTES + (64 << 10)),)
TRAINER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MOST_TOKEN_BYTES + MOST_ROUTE_BYTES),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    *_UNANSWERED,
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a load may be silent for minutes
)
