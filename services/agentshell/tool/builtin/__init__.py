"""The tools that come with Agent Shell: one file each, all of them in `table`."""
