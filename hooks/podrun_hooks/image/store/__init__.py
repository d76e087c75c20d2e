"""The image store: an OCI image layout with unpacked layers beside it."""
