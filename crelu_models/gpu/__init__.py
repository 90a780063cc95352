"""Kernels of a GPU, by Triton: activations, with the bias in front of them, and max pooling, each in a single pass.

Values and gradients are those of torch's operations bit for bit, with NaN, infinities and zeros. `choice` says where a
kernel is taken. With TRITON_INTERPRET=1 the kernels run on a CPU.
"""
