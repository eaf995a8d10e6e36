"""The error of a wrong setting. In a file almost without imports, so that every module can raise it cheaply."""

from common.cli import UserError


class ConfigError(UserError):
    """A mistake in a recipe or a setting, in one line."""
