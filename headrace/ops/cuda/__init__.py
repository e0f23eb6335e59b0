"""The ops on an NVIDIA GPU: kernels in Triton, each with a plain torch op to fall back to. `support` needs no torch."""
