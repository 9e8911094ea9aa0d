"""The pruning layer: what to prune is decided by `trisparse.sparse_ops`, when and where by this package.

Its public names are those of `trisparse`.
"""
