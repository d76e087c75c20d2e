"""The launcher: what up, down, run and image pull do, from the command line to the exit code. The start path."""
