"""Where memory is kept: the port, and one file per database."""
