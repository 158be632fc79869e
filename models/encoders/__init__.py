"""Encoders: memory -> (memory, what it wants to be supervised on or looked at, by name)."""
