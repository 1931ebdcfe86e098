"""Structures over the vectors of a snapshot: derived, and always possible to rebuild. They know no images."""
