"""Choosing what is pruned: scores, exact selection, masks, N:M, and AdamW that scores and masks in its own pass.

`plan` and `units` say how lists of layers come. Imports no other wing.
"""
