"""The error of a wrong setting. In a file without other imports, so that every module can raise it cheaply."""

from common.cli import UserError


class ConfigError(UserError):
    """A user's mistake in one line."""
