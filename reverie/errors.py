"""The errors that a person is told of in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


class PlainError(Exception):
    """An error whose message is all that a person needs: the command line prints it without a traceback.

    Attributes:
      exit_code: of the program: 2 for what was typed, or lies in the directory that was named; 1 for what happened
        while it ran.
    """

    exit_code = 2

    def answer(self, argv: Sequence[str]) -> str:
        """The message for a person who typed `reverie` and these words."""
        return str(self)
