"""The wire contract: one module per event, the topic table, taxonomy and codecs."""
