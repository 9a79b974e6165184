"""Pixels without labels in, an encoder and an honest account of it out."""
