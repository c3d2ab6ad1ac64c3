"""Reports of recipes are opened in a browser, too."""

from tests.browser.conftest import browser  # noqa: F401
