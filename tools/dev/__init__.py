"""What measures this project and writes its docs; its users need nothing of it."""
