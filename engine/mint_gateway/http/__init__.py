"""The gateway's HTTP door, which speaks OpenAI's API: the same requests as by gRPC, through the same router."""
