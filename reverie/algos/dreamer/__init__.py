"""The Dreamers: a paper is a file."""
