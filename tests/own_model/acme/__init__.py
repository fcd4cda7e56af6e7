"""A package of a user's own: what a worker's environment holds beside nnsec."""
