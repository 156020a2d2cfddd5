"""The command: parse, call, print. One module per group of subcommands."""
