"""What several tools share, or one of them alone needs."""
