"""What layers and models cost by how much of them is pruned, measured or by a static model.

May import layers and config.
"""
