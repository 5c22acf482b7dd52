"""Codecs with no I/O: bytes in, messages out, and back. The sockets that carry them live in `server` and `client`."""
