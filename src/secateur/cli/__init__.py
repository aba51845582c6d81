"""The command line: one file for each subcommand. Nothing here imports torch before a command runs."""
