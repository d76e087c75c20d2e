"""Images from everywhere else: archives, layouts, dockerd, directories, the host."""
