"""Tasks, their examples and batches, and the metrics that models are judged by.

Imports no other wing.
"""
