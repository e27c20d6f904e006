"""babyllama: train a small Chinese LLaMA from scratch, understand every step of it, and ship the result."""

__version__ = "0.1.0"
