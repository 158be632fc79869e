"""The error of everything that has to do with checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and what helps."""
