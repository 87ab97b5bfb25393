"""Structured channel pruning: groups, importance, plan, removal."""
