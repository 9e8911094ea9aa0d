"""The commands of `trisparse`, a module each: its flags, what they must be, and the call of what does the work.

Each has `make_parser(prog)` and `main(argv, prog)`, which returns the exit status and raises PruningError;
`trisparse.cli` calls them. `bench` is `trisparse.suite`. May import `run_report`, `glue`, `deploy`, `channels`,
`one_shot`, `pruner`, `layers`, `config` and `data`.
"""
