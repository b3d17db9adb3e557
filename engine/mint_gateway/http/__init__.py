"""The gateway's HTTP door, which speaks OpenAI's API: the same requests as over gRPC, through the same router."""
