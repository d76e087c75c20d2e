"""The pod file: reading, checking, locating mistakes."""
