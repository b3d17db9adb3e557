"""The Trainer service: a policy's calls go to the engine that has it."""
