"""What a user reads when something is wrong: what happened, where, and how to mend it; one line each."""

from __future__ import annotations

_LINE = 240  # characters; a longer line is cut in its middle, where it says least


def one_line(text: object) -> str:
    """`text` on one printable line: control characters and lone surrogates escaped, the middle of a long one cut."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)
    return line if len(line) <= _LINE else f"{line[: _LINE // 2]} … {line[-_LINE // 2 :]}"


class UnipicError(Exception):
    """A failure with a known cause.

    what: what went wrong. where: the file, option or value at fault. mend: what to do about it.
    Its text is these, a line each; `exit_code` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = one_line(what), one_line(where), one_line(mend)
        super().__init__("\n".join(line for line in (self.what, self.where, self.mend) if line))

    def __reduce__(self) -> tuple[type[UnipicError], tuple[str, str, str]]:
        """Out of a process that prepares batches it comes with its three lines."""
        return type(self), (self.what, self.where, self.mend)


class BadInput(UnipicError):
    """A request that cannot be done as asked: a number, a text, a picture, an option."""

    exit_code = 2


class TryLater(UnipicError):
    """What was done is kept, and the same command goes on once something else is mended: a judge that is away."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class BadModel(UnipicError):
    """A model folder that is broken, incomplete, or not to be trusted."""


class PromptCut(UserWarning):
    """A prompt is longer than the text encoders read."""


class CheckpointSkipped(UserWarning):
    """A broken checkpoint was passed over for an older one."""
