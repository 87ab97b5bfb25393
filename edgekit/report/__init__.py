"""What a run measured, as values, and how people see it."""
