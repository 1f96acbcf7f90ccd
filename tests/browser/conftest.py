"""The browser of the tests: one for a file of them, skipped loudly where there is none."""
import pytest


@pytest.fixture(scope="module")
def page(server):
    """ComfyUI's page on the session's server: see testhost.browser.Page."""
    from testhost.browser import Page, chromium
    from testhost.view import WINDOW
    try:
        opened = chromium()
        browser = opened.__enter__()
    except (FileNotFoundError, ImportError) as reason:
        pytest.skip(f"BROWSER TESTS SKIPPED: {reason}")
    yield Page(browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]}), server.address)
    opened.__exit__(None, None, None)
