"""The Trainer service: calls of a policy go to the engine that has it."""
