"""The life of a training: steps, state, optimizer, numbers gone wrong."""
