"""Words on a command line: one file per group of commands."""
