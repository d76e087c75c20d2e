"""Turns a layer's bytes into files: decompression, the tar reader, extraction confined to one directory."""
