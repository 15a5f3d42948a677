"""The commands, a file each: its `app` has the command, its `PLACE` says where it stands in the list of `--help`."""
