"""From a layer's bytes to its files: decompression, the tar reader, extraction inside one directory."""
