"""What to prune, how far and when, as plain values: keys, patterns, schedules, and the files they are read from.

Knows no model, and imports no other wing.
"""
