"""The door: admits turns into the log, and streams what comes of them."""
