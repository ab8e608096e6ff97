"""The HTTP service: encoder and mapped index in one replica, a search page, and wire models (DESIGN 6).

app        Serve deployment, FastAPI routes, start and stop
service    one request from query to results; plain async class, no Ray
encoder    text and pictures to vectors; searcher  the mapped index; batcher  runs at once, takes what queued
wire       request and response models; problems  RFC 9457 errors; guard  keys, caps and headers
page/      the search page and its two files
"""
