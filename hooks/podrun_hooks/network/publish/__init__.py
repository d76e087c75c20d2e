"""Published ports: their spelling, their holders, and the nft maps in which each port is an element."""
