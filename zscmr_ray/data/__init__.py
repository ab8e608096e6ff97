"""Rows on their way in: shard readers, image decoding, captions, class splits and the order of training.

Single-process code over bytes and lists: no Ray, no URIs (files come as keys and an `open_file` callable).
"""
