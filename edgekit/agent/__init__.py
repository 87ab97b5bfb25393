"""What travels inside a bundle: standard library, numpy and one runtime; nothing of edgekit is imported."""
