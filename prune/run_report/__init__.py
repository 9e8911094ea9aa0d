"""Shows a run of the GLUE loop as one HTML page: its folder read back, its pictures, its template.

May import every wing below it: glue, deploy, channels, one_shot, pruner, layers, config, data.
"""
