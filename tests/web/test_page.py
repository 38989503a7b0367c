import base64
import io
import json
import re
import threading

import numpy as np
import pytest
from browser import assert_accessible, assert_fits
from PIL import Image
from playwright.sync_api import expect
from samples import encode, huge_png, noise
from stand_in import ANSWER, CLASSES, SCORES, reply

from vision.preprocessing import decode, open_picture

PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}
UNSURE = {
    "label": None,
    "confidence": 0.41,
    "scores": dict(zip(CLASSES, [0.05, 0.41, 0.38, 0.1, 0.06])),
    "request_id": "r-2",
}


@pytest.fixture
def page(visit, site):
    return visit(site.url)


def photo(name="photo.png", height=300, width=400, seed=0):
    """A picture as Playwright hands it to a file input."""
    return as_file(encode(noise(height, width, seed=seed)), name)


def as_file(data, name):
    return {"name": name, "mimeType": "", "buffer": data}


def choose(page, *files):
    page.set_input_files("#file", list(files))


def until_answered(page, word="laptops"):
    page.locator("#winner", has_text=word).wait_for()


def until_problem(page):
    page.locator("#problem").wait_for()
    return page.inner_text("#sentence")


def sent(api):
    """The picture in the last request, as the endpoint would see it: (H, W, 3)."""
    return as_the_endpoint_sees(api.requests[-1].body)


def as_the_endpoint_sees(data):
    return decode(open_picture(data), 112, 3).permute(1, 2, 0).numpy().astype(int)


# ---- each way in ----


def in_base64(file):
    return base64.b64encode(file["buffer"]).decode()


def drop(page, **data):
    script = """({text, base64}) => {
        const transfer = new DataTransfer();
        const bytes = base64 && Uint8Array.from(atob(base64), byte => byte.charCodeAt(0));
        if (text) transfer.setData("text/uri-list", text);
        else transfer.items.add(new File([bytes], "photo.png"));
        for (const kind of ["dragover", "drop"])
          document.querySelector("h1").dispatchEvent(new DragEvent(
            kind, {bubbles: true, cancelable: true, dataTransfer: transfer}));
    }"""
    page.evaluate(script, data)


def paste(page):
    page.keyboard.press("Control+V")


def drop_picture(page):
    drop(page, base64=in_base64(photo()))


def paste_picture(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    script = """async base64 => {
        const bytes = Uint8Array.from(atob(base64), byte => byte.charCodeAt(0));
        const blob = new Blob([bytes], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    }"""
    page.evaluate(script, in_base64(photo()))
    paste(page)


def click_choose(page):
    with page.expect_file_chooser() as chooser:
        page.click("text=Choose a photo")
    chooser.value.set_files([photo()])


def click_frame(page):
    with page.expect_file_chooser() as chooser:
        page.click("#frame")
    chooser.value.set_files([photo()])


def take_photo(page):
    assert page.get_attribute("#camera", "capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.tap("text=Take a photo")
    chooser.value.set_files([photo()])


def click_sample(page):
    page.click("text=Or try >> xpath=.. >> button >> nth=1")


WAYS = [click_choose, click_frame, drop_picture, paste_picture, take_photo, click_sample]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_way_in_leads_to_an_answer(visit, site, api, way):
    page = visit(site.url, **PHONE if way is take_photo else {})
    expect(page).to_have_title("What is for sale?")
    assert page.is_visible("text=Take a photo") == (way is take_photo)
    way(page)
    until_answered(page)
    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/classify")
    assert request.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(request.body)) as image:
        assert (image.format, image.size) == (
            "JPEG",
            ((60, 60) if way is click_sample else (224, 224)),
        )
    shown = page.get_attribute("#preview", "src")
    assert base64.b64decode(shown.split(",")[1]) == request.body
    if way is click_choose:  # The same file once more is a question once more.
        way(page)
        expect(page.locator("#history li")).to_have_count(2)


def test_what_is_no_file_is_told_and_never_fetched(page, api, site):
    drop(page, text=f"{site.url}/samples/1.jpg")
    assert until_problem(page) == "That is not a file: save the picture and drop its file."
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('words')")
    paste(page)
    expect(page.locator("#sentence")).to_contain_text("no picture in the clipboard")
    assert api.requests == []


# ---- what is sent ----


def smooth(height, width, channels=3):
    """A colourful picture without fine detail, so that JPEG is faithful to it."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [rows, columns, np.abs(np.sin(7 * rows * columns)), (rows + columns) / 2]
    return (255 * np.stack(waves[:channels], axis=2)).astype(np.uint8)


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    # A place, as phones note it: it must not leave the device.
    exif.get_ifd(0x8825)[1] = "N"
    return encode(smooth(300, 400), "JPEG", exif=exif, quality=95)


def fine_stripes():
    """12 megapixels of stripes that turn into false patterns where a resize skips pixels."""
    rows, columns = np.indices((3000, 4000), dtype=np.int32)
    return encode(127 + 100 * np.sign(np.sin(columns / 2.3 + rows / 3.1)), "JPEG", quality=90)


PICTURES = {
    **{
        f"orientation {value}": (lambda value=value: with_orientation(value))
        for value in range(1, 9)
    },
    "transparent PNG": lambda: encode(smooth(300, 500, 4)),
    "transparent WebP": lambda: encode(smooth(300, 500, 4), "WEBP", lossless=True),
    "grey": lambda: encode(smooth(300, 400)[:, :, 0]),
    "wider than high by one": lambda: encode(smooth(448, 449)),
    "panorama": lambda: encode(smooth(113, 3000)),
    "smaller than the model's input": lambda: encode(smooth(40, 30)),
    "one pixel": lambda: encode(np.full((1, 1, 3), 90)),
    "a 12-megapixel photo": fine_stripes,
}


def test_the_endpoint_sees_what_it_would_see_of_the_original(page, api):
    """Upright, on white, cut to the middle and small: within what JPEG changes."""
    for name, make in PICTURES.items():
        original = make()
        with page.expect_response("**/classify"):
            choose(page, as_file(original, "photo"))
        difference = np.abs(sent(api) - as_the_endpoint_sees(original))
        # Where pixels were skipped, the stripes' mean would be 14.
        assert difference.mean() < (4 if make is fine_stripes else 2), name
        assert np.quantile(difference, 0.99) < 16, name
        body = api.requests[-1].body
        assert len(body) < 20_000, name
        assert b"Exif" not in body, name


def heic():
    return b"\0\0\0\x18ftypheic\0\0\0\0" + noise(20, 20).tobytes()


def truncated(kind):
    data = encode(noise(300, 400), kind)
    return data[: len(data) // 2]


REFUSED = {
    "a text": (b"Dear diary", "“photo.jpg” is not a picture that can be opened: choose a JPEG"),
    "a script": (b"<svg onload='alert(1)'/>", "“photo.jpg” is not a picture"),
    "nothing": (b"", "“photo.jpg” is empty"),
    "HEIC": (heic(), "This browser cannot open HEIC photos: save it as JPEG"),
    "half a JPEG": (truncated("JPEG"), "“photo.jpg” is damaged or incomplete"),
    "half a PNG": (truncated("PNG"), "“photo.jpg” is damaged or incomplete"),
    "400 megapixels": (huge_png(), "“photo.jpg” has 400 million pixels, and at most 120 million"),
}


def test_what_cannot_be_sent_is_refused_in_one_sentence(page, api, tmp_path):
    for name, (data, sentence) in REFUSED.items():
        choose(page, as_file(data, "photo.jpg"))
        expect(page.locator("#sentence"), name).to_contain_text(sentence)
        expect(page.locator("#status")).to_have_text(page.inner_text("#sentence"))
        assert page.is_hidden("#retry")
        assert page.is_hidden("#preview")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(50_000_001)
    page.set_input_files("#file", tmp_path / "large.jpg")
    expect(page.locator("#sentence")).to_contain_text("“large.jpg” has 51 MB, and at most 50 MB")
    assert api.requests == []
    choose(page, photo())
    until_answered(page)


# ---- the answer ----


def bars(page):
    """Names, percentages and lengths in percent, from top to bottom."""
    script = """rows => rows.map(row => [
        ...["name", "score"].map(part => row.querySelector("." + part).textContent),
        Math.round(100 * row.querySelector(".fill").getBoundingClientRect().width
                       / row.querySelector(".track").getBoundingClientRect().width)])"""
    return page.locator("#bars li").evaluate_all(script)


def test_the_answer_has_a_bar_for_every_class_a_name_and_the_time(visit, site):
    page = visit(site.url, reduced_motion="reduce")
    choose(page, photo())
    until_answered(page)
    rows = bars(page)
    scores = sorted(SCORES.items(), key=lambda item: -item[1])
    assert [row[:2] for row in rows] == [[name, f"{score:.0%}"] for name, score in scores]
    assert [row[2] for row in rows] == pytest.approx([100 * s for _, s in scores], abs=1)
    expect(page.locator("#status")).to_have_text("laptops, 90% sure.")
    assert page.inner_text("#sure") == "90% sure"
    found = re.fullmatch(
        r"Answered in (\S+) s: (\S+) s to make the photo small \(\S+ kB\), "
        r"(\S+) s for the network and the model\.",
        page.inner_text("#took"),
    )
    total, prepare, ask = map(float, found.groups())
    assert 0 < prepare < total
    assert total == pytest.approx(prepare + ask, abs=0.011)


def test_rounding_makes_nothing_certain(page, api):
    shares = [0.9951, 0.0049, 0.01, 0, 1]
    scores = dict(zip(CLASSES, shares))
    api.answers = [reply({"label": "furniture", "confidence": 0.9951, "scores": scores})]
    choose(page, photo())
    until_answered(page, "furniture")
    assert page.inner_text("#sure") == "> 99% sure"
    assert [row[1] for row in bars(page)] == ["100%", "> 99%", "1%", "< 1%", "0%"]


def test_without_a_clear_answer_the_two_best_guesses_are_named(page, api):
    api.answers = [reply(UNSURE)]
    choose(page, photo())
    until_answered(page, "not sure")
    said = "Perhaps laptops (41%) or mobiles (38%). A category is named from 50% on."
    assert page.inner_text("#sure") == said
    expect(page.locator("#status")).to_have_text(f"Not sure. {said}")


def test_answers_so_far_can_be_seen_again_and_cleared(page, api):
    page.click("#samples button >> nth=0")
    until_answered(page)
    api.answers = [reply(UNSURE)]
    page.click("#samples button >> nth=1")
    until_answered(page, "not sure")
    rows = page.locator("#history li")
    assert rows.all_inner_texts() == ["not sure\n41%", "laptops\n90%"]
    preview = page.get_attribute("#preview", "src")
    page.click("#history li:nth-child(2) button")
    until_answered(page)
    assert page.get_attribute("#preview", "src") != preview
    pressed = page.locator("[aria-pressed=true]")
    assert pressed.all_inner_texts() == ["", "laptops\n90%"]
    page.click("text=Clear")
    assert rows.count() == 0
    assert page.is_hidden("#history")
    for _ in range(13):
        with page.expect_response("**/classify"):
            choose(page, photo())
    expect(rows).to_have_count(12)
    stored = page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length")
    assert stored == 0


def test_names_are_shown_and_never_run(visit, site, api):
    evil = "<img src=x onerror=alert(1)>"
    site.settings |= {"title": evil, "about": evil, "classes": [evil, "b"]}
    site.settings["samples"] = [{"file": "samples/1.jpg", "alt": evil}]
    api.answers = [reply({"label": evil, "confidence": 1, "scores": {evil: 1, "b": 0}})]
    api.answers += [reply({"error": evil}, 400)]
    page = visit(site.url, **PHONE)
    assert page.inner_text("h1") == page.inner_text("#about") == evil
    page.click("#samples button")
    until_answered(page, evil)
    page.click("summary")
    assert page.locator("#label option").all_text_contents() == ["Choose …", "b"]
    assert_fits(page)
    choose(page, photo())
    assert until_problem(page) == f"The service does not accept this: {evil}."
    assert page.locator("img").count() == 3  # The preview, one sample, one answer.


# ---- faults ----


FAULTS = {
    "broken": (reply({"error": "x"}, 502), "The model is not available right now.", 0),
    "broken, with a hint": (
        reply({"error": "x", "retry_after": 3, "request_id": "r-7"}, 502, retry_after=3),
        "The model is not available right now.",
        3,
    ),
    "hint in the body only": (reply({"retry_after": 2}, 504), "The model took too long", 2),
    "throttled": (reply({"message": "Too Many Requests"}, 429), "Many photos are asked about", 0),
    "a date as the hint": (reply("", 503, retry_after="Fri, 1 Jan 2100"), "is not available", 0),
    "an endless hint": (reply("", 503, retry_after=86400), "is not available", 60),
    "server error": (reply("<h1>Oops</h1>", 500), "Something went wrong in the service.", 0),
    "connection cut": (None, "The service cannot be reached right now.", 0),
    "no JSON": (reply("<html>"), "The answer of the service cannot be read.", 0),
    "JSON of another kind": (reply([1]), "The answer of the service cannot be read.", 0),
    "null": (reply("null"), "The answer of the service cannot be read.", 0),
    "an unknown label": (reply({**ANSWER, "label": "toString"}), "cannot be read", 0),
    "scores that are no numbers": (
        reply({**ANSWER, "scores": {"laptops": "<b>"}}),
        "cannot be read",
        0,
    ),
}


def test_every_fault_is_one_sentence_and_can_be_tried_again(visit, site, api):
    page = visit(site.url, prepare=lambda page: page.clock.install())
    for name, (answer, sentence, seconds) in FAULTS.items():
        api.answers, api.requests = [answer], []
        choose(page, photo())
        expect(page.locator("#sentence"), name).to_contain_text(sentence)
        expect(page.locator("#status")).to_have_text(page.inner_text("#sentence"))
        button = page.locator("#retry")
        if seconds:
            expect(button).to_have_text(f"Try again in {seconds} s")
            assert button.is_disabled()
            page.clock.run_for((seconds - 1) * 1000)
            expect(button).to_have_text("Try again in 1 s")
            page.clock.run_for(1000)
        expect(button).to_be_enabled()
        expect(button).to_have_text("Try again")
        assert page.inner_text("#reference") == ("Reference: r-7" if "a hint" in name else "")
        button.dblclick()
        until_answered(page)
        first, second = api.requests
        assert first.body == second.body
    api.answers = [reply({"error": "the picture is truncated or damaged"}, 400)]
    choose(page, photo())
    expect(page.locator("#sentence")).to_have_text(
        "The service does not accept this: the picture is truncated or damaged."
    )
    assert page.is_hidden("#retry")


def test_offline_is_told_and_the_picture_kept(page, api):
    page.context.set_offline(True)
    choose(page, photo())
    assert until_problem(page) == "You are offline."
    assert page.is_visible("#preview")
    page.click("#samples button >> nth=1")
    expect(page.locator("#sentence")).to_have_text("A part of this page could not be loaded.")
    page.context.set_offline(False)
    page.click("#retry")
    until_answered(page)
    assert len(api.requests) == 1


def test_an_endless_wait_ends(visit, site, api):
    page = visit(site.url, prepare=lambda page: page.clock.install())
    gate = threading.Event()
    api.answers = [lambda: gate.wait(30) and None]
    with page.expect_request("**/classify"):
        choose(page, photo())
    expect(page.locator("#status")).to_have_text("Looking at the photo.")
    page.clock.run_for(30_000)
    assert until_problem(page) == "The model took too long to answer."
    gate.set()
    page.click("#retry")
    until_answered(page)


def test_a_page_that_lost_its_settings_says_so(visit, site, api):
    settings, site.settings = site.settings, None
    page = visit(site.url)
    assert until_problem(page) == "A part of this page could not be loaded."
    choose(page, photo())
    until_problem(page)
    site.settings = settings
    page.click("#retry")
    until_answered(page)
    assert page.locator("#samples button").count() == 3


def test_one_double_click_is_one_question(page, api):
    gate = threading.Event()
    api.answers = [lambda: gate.wait(30) and reply(ANSWER)]
    page.dblclick("#samples button >> nth=0")
    page.click("#samples button >> nth=0")
    gate.set()
    until_answered(page)
    page.dblclick("#samples button >> nth=0")
    page.click("#samples button >> nth=1")  # Whatever came before this one has been sent.
    expect(page.locator("#history li")).to_have_count(2)
    assert len(api.requests) == 2


def test_the_last_picture_wins(page, api):
    gate = threading.Event()
    api.answers = [lambda: gate.wait(30) and reply(UNSURE)]
    with page.expect_request("**/classify"):
        choose(page, photo(seed=1))
    with page.expect_event("requestfailed") as failed:
        choose(page, photo(seed=2))
    assert failed.value.failure == "net::ERR_ABORTED"
    until_answered(page)
    gate.set()
    choose(page, as_file(b"no picture", "photo.jpg"))
    until_problem(page)
    assert page.locator("#history li").all_inner_texts() == ["laptops\n90%"]
    # The second before the first is even decoded.
    choose_twice = """files => files.forEach(base64 => {
        const bytes = Uint8Array.from(atob(base64), byte => byte.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "photo.png"));
        dispatchEvent(new DragEvent("drop", {cancelable: true, dataTransfer}));
    })"""
    plain = as_file(encode(np.full((50, 50, 3), 200)), "plain.png")
    page.evaluate(choose_twice, [in_base64(photo(seed=1)), in_base64(plain)])
    expect(page.locator("#history li")).to_have_count(2)
    assert len(api.requests) == 3
    assert np.abs(sent(api) - 200).max() < 3


# ---- corrections ----


def test_a_correction_needs_consent_and_goes_out_once(page, api):
    choose(page, photo())
    until_answered(page)
    page.click("summary")
    page.select_option("#label", "watches")
    page.click("#send")
    assert page.evaluate("document.activeElement.id") == "consent"  # The browser asks for it.
    page.check("#consent")
    api.answers = [reply({"retry_after": 1}, 502), reply({"id": "c-1"}, 201)]
    page.click("#send")
    complaint = "The store of corrections is not available right now."
    expect(page.locator("#complaint")).to_have_text(complaint)
    expect(page.locator("#send")).to_have_text("Try again in 1 s")
    page.dblclick("#send")
    expect(page.locator("#thanks")).to_have_text("Thank you. Stored as watches, number c-1.")
    expect(page.locator("#status")).to_have_text("Thank you. Stored as watches, number c-1.")
    assert page.evaluate("document.activeElement.id") == "thanks"
    assert page.is_hidden("#wrong")
    picture, *corrections = api.requests
    assert [request.path for request in corrections] == ["/corrections"] * 2
    correction = json.loads(corrections[1].body)
    assert base64.b64decode(correction.pop("image")) == picture.body
    assert correction == {"label": "watches", "predicted": "laptops", "consent": True}
    page.click("#samples button >> nth=0")
    expect(page.locator("#history li")).to_have_count(2)
    assert page.is_hidden("#thanks")
    assert not page.is_checked("#consent")
    page.click("#history li:nth-child(2) button")
    expect(page.locator("#thanks")).to_be_visible()


def test_where_it_was_not_sure_every_category_is_offered(page, api):
    api.answers = [reply(UNSURE), reply({"id": "c-2"}, 201)]
    choose(page, photo())
    until_answered(page, "not sure")
    page.click("summary")
    assert page.locator("#label option").all_text_contents() == ["Choose …", *CLASSES]
    page.select_option("#label", "mobiles")
    page.check("#consent")
    page.dblclick("#send")
    expect(page.locator("#thanks")).to_be_visible()
    _, correction = api.requests
    assert json.loads(correction.body)["predicted"] is None


# ---- for everybody ----


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_accessible_and_fits_a_phone(visit, site, api, scheme):
    page = visit(site.url, color_scheme=scheme, reduced_motion="reduce", **PHONE)
    states = {}

    def check(state):
        assert_accessible(page, state)
        assert_fits(page)
        states[state] = page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.locator("#samples button").first.wait_for()
    check("empty")
    gate = threading.Event()
    api.answers = [lambda: gate.wait(30) and reply(ANSWER), reply(UNSURE), reply({}, 502)]
    choose(page, photo())
    page.locator("#preview").wait_for()
    check("working")
    assert page.evaluate("document.getAnimations().length") == 0
    gate.set()
    until_answered(page)
    page.click("summary")
    check("answer")
    page.tap("#samples button >> nth=2")
    until_answered(page, "not sure")
    for part in ("#preview", "#winner", "#bars"):  # Though the samples are further down.
        expect(page.locator(part)).to_be_in_viewport(ratio=0.9)
    check("not sure")
    choose(page, photo())
    until_problem(page)
    check("problem")
    assert set(states.values()) == {
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)"
    }


def focused(page):
    """What has the focus; it must be seen to have it, and be in sight."""
    expect(page.locator(":focus")).to_be_in_viewport(ratio=0.9)
    name, outline = page.evaluate("""() => {
        const at = document.activeElement;
        const shown = at.matches(".unseen") ? at.nextElementSibling : at;
        return [at.id || at.tagName, getComputedStyle(shown).outlineStyle];
    }""")
    assert outline in ("solid", "auto"), name
    return name


def test_the_keyboard_is_enough(visit, site, api):
    page = visit(site.url, viewport={"width": 900, "height": 500}, reduced_motion="reduce")
    page.on("filechooser", lambda _: None)  # Else Chromium may not tell of the first one.
    page.locator("#samples button").first.wait_for()
    tab = page.keyboard.press
    tab("Tab")
    assert focused(page) == "file"
    with page.expect_file_chooser():
        page.keyboard.press("Enter")
    tab("Tab")
    assert focused(page) == "BUTTON"
    page.keyboard.press("Enter")
    until_answered(page)
    tab("Shift+Tab")
    assert focused(page) == "SUMMARY"
    page.keyboard.press("Enter")
    tab("Tab")
    assert focused(page) == "label"
    page.keyboard.press("m")
    tab("Tab")
    assert focused(page) == "consent"
    page.keyboard.press("Space")
    tab("Tab")
    assert focused(page) == "send"
    api.answers = [reply({"id": "c-3"}, 201)]
    page.keyboard.press("Enter")
    expect(page.locator("#thanks")).to_contain_text("Stored as mobiles")
    assert json.loads(api.requests[-1].body)["label"] == "mobiles"
