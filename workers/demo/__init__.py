"""The demo: a network attacked and defended, live, on real data and real services."""
