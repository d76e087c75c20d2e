"""What several hooks need: system calls, processes, paths and ownership."""
