"""Which weights of a model can be pruned, where they lie and what is left out; their shards on many processes.

May import config.
"""
