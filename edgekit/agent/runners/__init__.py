"""One file a runtime; a bundle holds the one that it needs."""
