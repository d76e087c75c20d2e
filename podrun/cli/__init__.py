"""The command line: click, tables and JSON."""
