"""The gateway: admits turns into the log, and streams their updates."""
