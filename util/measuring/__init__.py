"""What a detector costs: MACs, latency, memory."""
