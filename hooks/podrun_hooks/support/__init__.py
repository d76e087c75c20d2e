"""What several hooks need: system calls, processes and paths."""
