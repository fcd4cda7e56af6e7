"""One module for each command of ``nnsec``, or for each group of them."""
