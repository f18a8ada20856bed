"""Every boundary where something from outside comes in, with a fuzzer that knows its shape.

`python -m tests.chaos.boundaries` sends 2,000 odd and hostile cases over each; see `hammer.py` for
what is watched meanwhile, `twist.py` for what is made odd.
"""
