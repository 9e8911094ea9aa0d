"""2:4 weights: packed, in every layout that a library reads, multiplied, and as layers for inference and training.

May import choosing, whose N:M masks it packs.
"""
