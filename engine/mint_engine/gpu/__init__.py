"""Own kernels for GPUs, in Triton: adapters' products, those with quantised experts, and attention over pages."""
