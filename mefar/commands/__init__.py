"""One short file per verb of the `mefar` command: parse, call, print."""
