"""Login and authorities of a backend that has a URL: the mirror's store and the schema registry."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from schemas.errors import ConfigError
from schemas.parsing import demand, variable
from schemas.watched import Stamp, secret_in, stamp_of

__all__ = ["BackendLogin"]


@dataclass(frozen=True, slots=True)
class BackendLogin:
    """Read from `RIFFLE_<BACKEND>_USERNAME`, `_PASSWORD_FILE` and `_CA_FILE`."""

    backend: str
    "`redis` or `registry`, for the names of settings in errors."
    username: str = ""
    password_file: str = ""
    "File that holds the password. Empty: the URL holds the login, if there is one."
    ca_file: str = ""
    "PEM file of the authorities that sign the backend's certificate. Empty: those that the system trusts."

    def check(self, url: str, encrypts: tuple[str, ...]) -> None:
        """Check that the settings agree with the backend's URL. `encrypts`: the schemes that use TLS.

        Raises:
            ConfigError: they do not; the message names the variable.
        """
        name = variable(f"{self.backend}_url")
        for own in ("username", "password_file", "ca_file"):
            demand(bool(url) or not getattr(self, own), f"{self.backend}_{own}", f"is used only with {name}")
        demand(bool(self.password_file) or not self.username, f"{self.backend}_username", "needs a password's file beside it")
        twice = bool(self.password_file) and "@" in url.partition("://")[2].partition("/")[0]
        demand(not twice, f"{self.backend}_password_file", f"must not be given with a login in {name}")
        demand(
            not self.ca_file or url.startswith(encrypts), f"{self.backend}_ca_file", f"needs {' or '.join(encrypts)} in {name}"
        )

    @property
    def stamps(self) -> tuple[Stamp, Stamp]:
        """Identity of the files' content now."""
        return stamp_of(self.password_file), stamp_of(self.ca_file)

    def password(self) -> str:
        """Return the password that the file holds; empty without a file.

        Raises:
            ConfigError: the file cannot be read, or holds no password.
        """
        return secret_in(self.password_file, f"{self.backend}_password_file") if self.password_file else ""

    def context(self) -> ssl.SSLContext:
        """Return a context that verifies the backend and its name.

        Raises:
            ConfigError: the authorities cannot be read.
        """
        try:
            return ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ValueError) as exc:
            setting = f"{self.backend}_ca_file"
            message = f"{variable(setting)} holds no certificates in PEM that can be read: {exc}"
            raise ConfigError("invalid_setting", message, setting) from exc
