"""Decoders of JPEG, each a module that is imported where it decodes."""
