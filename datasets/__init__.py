"""Data in COCO format: reading, augmenting, batching, generating and scoring it."""
