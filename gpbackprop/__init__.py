"""Train feed-forward, convolutional and recurrent networks by backpropagation, on NumPy or CuPy."""

__version__ = "0.1.0"
