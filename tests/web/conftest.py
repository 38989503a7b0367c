"""The page in Chromium, before a stand-in for its API."""

import pytest
from stand_in import Api, Site


@pytest.fixture
def api():
    api = Api()
    yield api
    api.close()


@pytest.fixture
def site(api):
    site = Site(api)
    yield site
    site.close()


@pytest.fixture
def visit(chromium):
    """Open the page at an address; returns Playwright's page.

    At the end nothing may have failed there: no script, and nothing that the policy forbids.
    """
    contexts, said = [], []

    def note(message):
        # Chromium writes such a line for every answer from 400 on, whoever expects it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            said.append(message.text)

    def open_page(url, prepare=None, **context):
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", note)
        page.on("pageerror", lambda error: said.append(str(error)))
        if prepare:
            prepare(page)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
