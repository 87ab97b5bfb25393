"""Accuracy on samples that were changed: corruptions, adversarial inputs, and the statistics of both."""
