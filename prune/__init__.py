"""The pruning layer: what to prune is decided by `trisparse.sparse_ops`, when and where by this package.

Its public names are those of `trisparse`. It has eight wings, whose imports run only downwards in this list:
`commands`, `run_report`, `glue`, `deploy` over `channels`, `one_shot`, `pruner`, `config`. The `trisparse` command
stands above them, and beneath them the few files here that all use.
"""
