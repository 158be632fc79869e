"""Decoders: (Queries, memory) -> (Detections of all layers, what they traced, by name)."""
