"""Several processes as one, and how a process ends."""
