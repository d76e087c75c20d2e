"""The command line beyond the start path: click commands, tables and JSON, completion."""
