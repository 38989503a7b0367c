"""What tests ask of any page that is open in Chromium (fixture `chromium`)."""

from axe_playwright_python.sync_playwright import Axe


def assert_accessible(page, state=""):
    """axe-core finds nothing serious or critical: names, roles, contrast, …"""
    found = Axe().run(page).response["violations"]
    severe = [each for each in found if each["impact"] in ("serious", "critical")]
    told = [(each["id"], [node["html"] for node in each["nodes"]]) for each in severe]
    assert told == [], (state, told)  # pytest explains the assertions of tests only.


def assert_fits(page):
    """Nothing sticks out to the right."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
