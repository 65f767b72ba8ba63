"""Servers: thin shells over HTTP around what Python callers use."""
