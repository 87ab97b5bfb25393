"""Model compression and edge deployment."""
