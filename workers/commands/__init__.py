"""One module for each command of ``nnsec``, or for each group of them.

They are all imported for any command, so what takes long to import (torch, scikit-learn, Faust) is
imported inside the functions that need it.
"""
