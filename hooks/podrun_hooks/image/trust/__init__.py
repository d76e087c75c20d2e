"""Which images are accepted: signatures and policies."""
