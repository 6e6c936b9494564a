"""The one error type that a user's mistake raises; the command line prints its text alone."""


class ExpungeError(ValueError):
    """Something the caller can mend; the message says what was wrong and what to do."""


class Unsupported(ExpungeError):
    """What was asked makes sense, but this version can't do it yet."""


class Missed(ExpungeError):
    """What was asked was done and written down, and it doesn't meet the policy's limits."""
