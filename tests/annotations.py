"""The type checker that conftest.py puts around every function of the package."""

from beartype import BeartypeConf, beartype

# An int where a float is annotated is right, as type checkers read it (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
