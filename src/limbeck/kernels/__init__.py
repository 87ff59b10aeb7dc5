"""Streaming kernels that the losses call: a PyTorch path for any device, a Triton path for CUDA."""
