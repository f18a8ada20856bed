"""Measured comparisons: every figure beside a yardstick taken in the same run.

`python -m bench` lists them, `python -m bench NAME` runs one. Only ratios inside one run mean
anything: the yardstick, the product and the load generator share the machine.
"""
