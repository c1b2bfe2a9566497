"""Which rounds' weights a record keeps."""

from __future__ import annotations

from dataclasses import dataclass

from fl_app.errors import ConfigError

__all__ = ["Keeping"]

_ALLOWED = "all, none, last:K (the last K rounds) or every:K (each Kth and the last), K from 1"


@dataclass(frozen=True)
class Keeping:
    """A rule for the weights of rounds.

    Parameters
    ----------
    every : int
        Rounds 0, `every`, 2 `every` and so on are kept as they end; 0 for none.
    last : int
        As many of the last rounds are kept, too.
    """

    every: int
    last: int

    @classmethod
    def of(cls, text: str) -> Keeping:
        """Read ``all``, ``none``, ``last:K`` or ``every:K``.

        Raises
        ------
        ConfigError
            For anything else.
        """
        word, colon, number = str(text).partition(":")
        if not colon and word in ("all", "none"):
            return cls(every=int(word == "all"), last=0)
        if word in ("last", "every") and number.isdecimal() and number.isascii() and int(number):
            return cls(0, int(number)) if word == "last" else cls(int(number), 1)
        raise ConfigError("tracking.keep_weights", text, _ALLOWED)

    def keeps(self, server_round: int) -> bool:
        """Return whether a round's weights are kept whatever follows."""
        return bool(self.every) and server_round % self.every == 0
