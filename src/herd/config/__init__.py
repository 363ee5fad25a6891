"""Schemas, strict loading, one closed registry per kind of thing."""
