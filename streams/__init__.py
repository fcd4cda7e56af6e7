"""The Faust application: one agent a module, and the delivery layer."""
