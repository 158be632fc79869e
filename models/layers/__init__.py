"""What encoders, queries and decoders are made of."""
