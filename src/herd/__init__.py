"""herd: the Llama 3 recipe as one Hydra-configured laboratory."""

__version__ = "0.1.0"
