"""The MuZero family: a paper is a file."""
