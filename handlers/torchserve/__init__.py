"""TorchServe as a front: what surrounds its custom handler (handlers/torchserve_handler.py)."""
