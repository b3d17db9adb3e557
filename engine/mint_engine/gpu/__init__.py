"""Own kernels for GPUs, in Triton: what adapters add to a step's rows, and attention over the cache's pages."""
