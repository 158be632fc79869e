"""Checkpoint files: written, read, downloaded, kept."""
