"""Retrieval quality: metrics as pure functions, and the protocols that call them."""
