"""Who said so: keys, signed envelopes, model statements and commands."""
