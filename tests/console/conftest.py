"""One browser for the tests of the console."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from tests.support.browser.windows import browser


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as one:
        yield one
