"""Agents in the console, with the keyboard alone. Run by `make pages`."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from pages.conftest import Platform

AGENTS = "/admin/agents/agent/"
TEMPLATES = "/admin/agents/agenttemplate/"
TIER = "/admin/core/tier/demo/change/"
SAVE = "button[name=_save]"
SAVE_AND_STAY = "button[name=_continue]"
MOST_STEPS = 150  # of the Tab key, for whatever page


class Person:
    """Somebody without a mouse: Tab, Enter, arrows and letters are all there is."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.key = page.keyboard.press

    def reach(self, selector: str) -> None:
        """Tab until the focus is there, and can be seen."""
        for _ in range(MOST_STEPS):
            self.key("Tab")
            if self.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                expect(self.page.locator("*:focus")).to_be_in_viewport()
                return
        pytest.fail(f"the keyboard does not lead to {selector}")

    def write(self, selector: str, text: str) -> None:
        """Instead of what the field holds."""
        self.reach(selector)
        self.key("Control+a")
        self.page.keyboard.type(text) if text else self.key("Delete")

    def press(self, selector: str) -> None:
        """A link or a button that leads to a page."""
        self.reach(selector)
        with self.page.expect_navigation():
            self.key("Enter")

    def follow(self, path: str) -> None:
        self.press(f'a[href^="{path}"]')

    def choose(self, selector: str, text: str) -> None:
        """In a list with a search."""
        self.reach(selector)
        self.key("Enter")
        self.page.keyboard.type(text)
        expect(self.page.locator(".select2-results__option--highlighted")).to_have_text(text)
        self.key("Enter")

    def switch(self, selector: str) -> None:
        """A box, on or off."""
        self.reach(selector)
        self.key("Space")

    def pick(self, selector: str, text: str) -> None:
        """In a list without a search."""
        self.reach(selector)
        self.page.keyboard.type(text)
        expect(self.page.locator(f"{selector} option:checked")).to_have_text(text)

    def select(self, action: str, paths: list[str]) -> None:
        """Do something with these agents of the list, in its order."""
        for path in paths:
            self.switch(f'.action-select[value="{path.split("/")[-1]}"]')
        self.pick("select[name=action]", action)
        self.press("button[name=index]")

    def change(self, fields: dict[str, str], button: str = SAVE_AND_STAY) -> None:
        for name, text in fields.items():
            self.write(f"#id_{name}", text)
        self.press(button)


@pytest.fixture
def arrive(platform: Platform, new_context: Callable[..., BrowserContext]) -> Callable[..., Person]:
    """Somebody who has signed in, at an address of the console."""

    def arrive(path: str = AGENTS, **options: Any) -> Person:
        person = Person(new_context(**options).new_page())
        person.page.goto(f"/admin/login/?next={path}")
        person.write("#id_username", platform.admin["username"])
        person.write("#id_password", platform.admin["password"])
        with person.page.expect_navigation(url=f"**{path}"):
            person.key("Enter")
        return person

    return arrive


def made(platform: Platform, name: str, **config: Any) -> tuple[str, str]:
    """An agent's address in the API, and its page."""
    config = {"provider": "scripted", "model": "demo", **config}
    fields = {"name": name, "type": "assistant", "config": config}
    agent_id = platform.call("POST", "/api/v1/agents", fields)["agent_id"]
    return f"/api/v1/agents/{agent_id}", f"{AGENTS}{agent_id}/change/"


WORDS = {
    "en": {"compare": "Compare versions", "made": "Version 3 has the configuration"},
    "es": {"compare": "Comparar versiones", "made": "La versión 3 tiene la configuración"},
}


@pytest.mark.parametrize("language", WORDS)
def test_an_agents_life(platform: Platform, arrive: Callable[..., Person], language: str) -> None:
    words, name = WORDS[language], f"Keys in {language}"
    person = arrive(locale=language)
    page = person.page
    assert page.get_attribute("html", "lang") == language

    person.follow(f"{AGENTS}add/")
    person.write("#id_name", name)
    person.choose(".select2-selection", "demo")
    person.change(
        {
            "type": "assistant",
            "config_provider": "scripted",
            "config_model": "demo",
            "config_instructions": "Be kind.",
        }
    )
    path = f"/api/v1/agents/{page.url.split('/')[-3]}"
    agent = platform.call("GET", path)
    assert (agent["name"], agent["version"], agent["published_version"]) == (name, 1, 1)

    # A change of the configuration is a version, with its note.
    person.change({"config_instructions": "Be brief.", "note": "They asked for less"})
    assert page.locator("#id_config_instructions").input_value() == "Be brief."
    [second, first] = platform.call("GET", f"{path}/versions")["items"]
    assert (second["note"], second["published"], first["published"]) == ("They asked for less", True, False)

    # Compare the two, and go back.
    person.press('a[href$="/compare/"]')
    expect(page).to_have_title(re.compile(words["compare"]))
    rows = page.locator(".console-changes tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(re.compile("config.instructions.*Be kind.*Be brief", re.DOTALL))
    person.write('input[name="note"]', "It was better")
    person.press('form[action$="/rollback/"] button')
    expect(page.locator("body")).to_contain_text(words["made"])
    agent = platform.call("GET", path)
    assert (agent["version"], agent["config"]["instructions"]) == (3, "Be kind.")

    # A change that waits, and its publication.
    person.write("#id_config_instructions", "Be bold.")
    person.reach("#id_hold")
    person.key("Space")
    person.press(SAVE_AND_STAY)
    agent = platform.call("GET", path)
    assert (agent["version"], agent["published_version"]) == (4, 3)
    person.press('form[action$="/do/publish/"] button')
    assert platform.call("GET", path)["published_version"] == 4
    expect(page.locator('form[action$="/do/publish/"]')).to_have_count(0)

    # A copy.
    person.press('form[action$="/do/duplicate/"] button')
    copy = page.locator('a[href^="/admin/agents/agent/"]').filter(has_text=re.compile(rf"^{name} \("))
    expect(copy).to_be_visible()

    # Away, and back.
    person.press('a[href$="/delete/"]')
    person.press('#content form [type="submit"]')
    with pytest.raises(urllib.error.HTTPError, match="404"):
        platform.call("GET", path)
    page.goto(f"{AGENTS}?deleted=1&q={name}")
    person.press(f'a[href*="{agent["agent_id"]}"]')
    person.press('form[action$="/do/restore/"] button')
    assert platform.call("GET", path)["published_version"] == 4

    # All of it is on record.
    person.follow("/admin/core/auditentry/?q=")
    verbs = ["restore", "delete", "publish", "update", "rollback", "update", "create"]
    expect(page.locator("#result_list tbody tr")).to_have_count(len(verbs))
    for row, verb in zip(page.locator("#result_list tbody tr").all(), verbs, strict=True):
        expect(row).to_contain_text(f"agent.{verb}")
        expect(row).to_contain_text("user:admin")


def test_out_as_a_file_and_in_as_text(platform: Platform, arrive: Callable[..., Person]) -> None:
    _, form = made(platform, "Traveller", instructions="Line one.\nLine two.", temperature=0.5)
    person = arrive(form)
    person.reach('a[href$="/export/"]')
    with person.page.expect_download() as download:
        person.key("Enter")
    text = Path(download.value.path()).read_text()
    assert json.loads(text)["format"] == "nooble.agent"

    person.page.goto(AGENTS)
    person.follow(f"{AGENTS}import/")
    person.choose(".select2-selection", "demo")
    person.reach("#id_text")
    person.page.keyboard.insert_text(text)
    person.press('#content form [type="submit"]')
    agent_id = person.page.url.split("/")[-3]
    copy = platform.call("GET", f"/api/v1/agents/{agent_id}")
    assert (copy["name"], copy["slug"] != "traveller") == ("Traveller", True)
    assert copy["config"]["instructions"] == "Line one.\nLine two."


@pytest.fixture
def narrow_tier(platform: Platform, arrive: Callable[..., Person]) -> Iterator[str]:
    """For a while the demo tenant's tier allows two models only; an agent that has another one."""
    path, _ = made(platform, "Too large", model="long")
    person = arrive(TIER)
    person.change({"allowed_models": "demo\necho"})
    expect(person.page.locator("body")).to_contain_text("Too large")
    person.reach("#id_confirmed")
    person.key("Space")
    person.press(SAVE_AND_STAY)
    yield path
    person.change({"allowed_models": ""})


def test_the_tier_says_no_in_the_same_words(
    platform: Platform, narrow_tier: str, arrive: Callable[..., Person]
) -> None:
    kept = platform.call("GET", narrow_tier)
    assert (kept["published_version"], kept["validation"]["status"]) == (1, "warnings")

    path, form = made(platform, "Modest")
    with pytest.raises(urllib.error.HTTPError) as refused:
        platform.call("PATCH", path, {"config": {"model": "enormous"}})
    assert refused.value.code == 422
    reason = json.load(refused.value)["error"]["details"]["config.model"]

    person = arrive(form)
    person.change({"config_model": "enormous"})
    expect(person.page.get_by_text(reason)).to_be_visible()
    assert person.page.locator("#id_config_model").input_value() == "enormous"
    person.change({"config_model": "echo"})
    agent = platform.call("GET", path)
    assert (agent["version"], agent["config"]["model"]) == (2, "echo")


def test_two_editors_at_once(platform: Platform, arrive: Callable[..., Person]) -> None:
    path, form = made(platform, "Shared", instructions="Be kind.", temperature=0.1)
    one, other = arrive(form), arrive(form)
    one.change({"description": "By one", "config_instructions": "Be kind, says one."})

    # Nothing of what the other wrote is lost, nothing of what the first one saved is overwritten.
    other.change({"config_temperature": "0.9"})
    page = other.page
    meanwhile = page.locator(".console-changes")
    expect(meanwhile).to_contain_text("Be kind, says one.")
    expect(meanwhile).to_contain_text("By one")
    assert page.locator("#id_config_instructions").input_value() == "Be kind, says one."
    assert page.locator("#id_description").input_value() == "By one"
    assert page.locator("#id_config_temperature").input_value() == "0.9"
    assert platform.call("GET", path)["version"] == 2

    other.press(SAVE_AND_STAY)
    agent = platform.call("GET", path)
    assert (agent["version"], agent["description"]) == (3, "By one")
    assert agent["config"]["instructions"] == "Be kind, says one."
    assert agent["config"]["temperature"] == 0.9


# --- Templates ----------------------------------------------------------------------------------------

VARIABLES = [
    {"name": "company", "label": "The company's name"},
    {"name": "terms", "label": "Terms of use", "type": "text", "default": "None."},
    {"name": "tone", "label": "Tone", "type": "choice", "choices": ["plain", "warm"], "default": "plain"},
    {"name": "times", "label": "How often", "type": "number", "default": 2},
    {"name": "formal", "label": "Formal", "type": "boolean", "default": False},
    {"name": "asked", "label": "Ask back", "type": "boolean"},
]
INSTRUCTIONS = "{{company}}|{{terms}}|{{tone}}|{{times}}|{{formal}}|{{asked}}"
INSTANTIATED = {"en": ("Create an agent", "yes"), "es": ("Crear un agente", "sí")}


def template_made(platform: Platform, name: str) -> str:
    """The id of a template of the demo tenant's own."""
    config = {"provider": "scripted", "model": "demo", "instructions": INSTRUCTIONS}
    fields = {"name": name, "type": "assistant", "config": config, "variables": VARIABLES}
    template_id: str = platform.call("POST", "/api/v1/templates", fields)["template_id"]
    return template_id


@pytest.mark.parametrize("language", INSTANTIATED)
def test_an_agent_from_a_template(platform: Platform, arrive: Callable[..., Person], language: str) -> None:
    title, yes = INSTANTIATED[language]
    template_id = template_made(platform, f"Template in {language}")
    person = arrive(f"{TEMPLATES}{template_id}/change/", locale=language)
    page = person.page
    person.follow(f"{TEMPLATES}{template_id}/instantiate/")
    expect(page).to_have_title(re.compile(title))
    expect(page.locator("#id_tenant")).to_have_count(0)

    # A value that does not fit brings the form back, with all that was written and why.
    person.write("#id_name", f"Made in {language}")
    person.write("#id_variables_company", "Acme")
    person.reach("#id_variables_terms")
    page.keyboard.type("Pay.\nSoon.")  # the focus selects nothing: it is added
    person.pick("#id_variables_tone", "warm")
    person.write("#id_variables_times", "1e16")
    person.switch("#id_variables_formal")
    person.pick("#id_variables_asked", yes)
    person.press('#content form [type="submit"]')
    with pytest.raises(urllib.error.HTTPError) as refused:
        values = {"company": "Acme", "asked": True, "times": 1e16}
        fields = {"name": "x", "variables": values}
        platform.call("POST", f"/api/v1/templates/{template_id}/instantiate", fields)
    reason = json.load(refused.value)["error"]["details"]["variables.times"]
    expect(page.locator(".errors")).to_have_count(1)
    expect(page.locator(".errors")).to_contain_text(reason)

    person.write("#id_variables_times", "3")
    person.press('#content form [type="submit"]')
    agent = platform.call("GET", f"/api/v1/agents/{page.url.split('/')[-3]}")
    assert (agent["name"], agent["template"]["id"]) == (f"Made in {language}", template_id)
    text = agent["config"]["instructions"]
    assert re.fullmatch(r"Acme\|.*Pay\.\nSoon\..*\|warm\|3\|yes\|yes", text, re.DOTALL), text


def test_everybodys_template_under_a_narrow_tier(
    platform: Platform, narrow_tier: str, arrive: Callable[..., Person]
) -> None:
    templates = platform.call("GET", "/api/v1/templates")["items"]
    shared = next(item for item in templates if item["slug"] == "translator-editor")
    assert shared["shared"]
    path = f"/api/v1/templates/{shared['template_id']}/instantiate"
    with pytest.raises(urllib.error.HTTPError) as refused:
        platform.call("POST", path, {"name": "x", "variables": {}})
    reason = json.load(refused.value)["error"]["details"]["config.model"]

    person = arrive(TEMPLATES)
    page = person.page
    person.follow(f"{TEMPLATES}{shared['template_id']}/instantiate/")
    person.write("#id_name", "Within the tier")
    person.choose(".select2-selection", "demo")
    person.press('#content form [type="submit"]')
    expect(page.locator(".errors:has(#id_config_model)")).to_contain_text(reason)
    person.write("#id_config_provider", "scripted")
    person.write("#id_config_model", "demo")
    person.press('#content form [type="submit"]')
    agent = platform.call("GET", f"/api/v1/agents/{page.url.split('/')[-3]}")
    assert (agent["name"], agent["config"]["model"]) == ("Within the tier", "demo")


# --- Mass updates -------------------------------------------------------------------------------------

BULK = {
    "en": {"action": "Change several agents", "refused": "refused", "cancelled": "cancelled"},
    "es": {"action": "Cambiar varios agentes", "refused": "rechazado", "cancelled": "cancelada"},
}


@pytest.mark.parametrize("language", BULK)
def test_one_change_for_several_agents(
    platform: Platform, narrow_tier: str, arrive: Callable[..., Person], language: str
) -> None:
    words = BULK[language]
    # The tier does not allow what the first one has: that one is refused, the others are changed.
    paths = [narrow_tier]
    platform.call("PATCH", narrow_tier, {"name": f"Several {language} 0"})
    paths += [made(platform, f"Several {language} {number}")[0] for number in (1, 2)]
    names = [f"Several {language} {number}" for number in range(3)]
    person = arrive(locale=language)
    page = person.page
    page.goto(f"{AGENTS}?q=Several {language}")
    person.select(words["action"], paths[::-1])

    expect(page.locator("#content")).to_contain_text(names[0])
    person.write("#id_description", "For several")
    person.write("#id_config_max_turns", "0")
    person.press('#content form [type="submit"]')
    expect(page.locator(".errors:has(#id_config_max_turns)")).to_be_visible()
    assert page.locator("#id_description").input_value() == "For several"
    person.write("#id_config_max_turns", "7")
    person.write("#id_note", "All at once")
    person.press('#content form [type="submit"]')

    # The page follows by itself until all is done; then there is nothing to cancel.
    expect(page.locator("progress")).to_have_attribute("value", "3")
    expect(page.locator(".console-cancel")).to_be_hidden()
    expect(page.locator(".console-tile strong")).to_have_text(["3", "3", "2", "1"])
    rows = page.locator(".console-rows li")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text(names[0])
    expect(rows.first).to_contain_text(words["refused"])
    expect(rows.first).to_contain_text("config.model: ")
    assert [platform.call("GET", path)["version"] for path in paths] == [1, 2, 2]
    agent = platform.call("GET", paths[1])
    assert (agent["description"], agent["config"]["max_turns"]) == ("For several", 7)
    person.follow(f"{AGENTS}{agent['agent_id']}/change/")
    assert page.locator("#id_config_max_turns").input_value() == "7"


@pytest.mark.parametrize("language", BULK)
def test_a_mass_update_is_cancelled(platform: Platform, arrive: Callable[..., Person], language: str) -> None:
    words, name = BULK[language], f"Patient {language}"
    path, _ = made(platform, name)
    # A tenant's mass updates run one after the other: this one is in the way for a while.
    nobody = [f"nobody-{number}" for number in range(10_000)]
    fields = {"agents": nobody, "changes": {"description": "x"}}
    ahead = platform.call("POST", "/api/v1/agents/bulk", fields)["result"]["task_id"]
    try:
        person = arrive(locale=language)
        page = person.page
        page.goto(f"{AGENTS}?q={name}")
        person.select(words["action"], [path])
        person.write("#id_type", "clerk")
        person.press('#content form [type="submit"]')
        expect(page.locator("progress")).to_have_attribute("value", "0")
        person.press(".console-cancel button")
        expect(page.locator(".console-progress")).to_contain_text(words["cancelled"])
        expect(page.locator(".console-cancel")).to_be_hidden()
    finally:
        platform.call("POST", f"/api/v1/agents/bulk/{ahead}/cancel")
    assert platform.call("GET", path)["type"] == "assistant"


# What is to be seen and ends beyond the right edge: the page itself would not scroll.
OUTSIDE = """(width) => [...document.querySelectorAll("#content *")]
    .filter((node) => node.checkVisibility() && node.getBoundingClientRect().right > width)
    .map((node) => node.outerHTML.slice(0, 100))"""


def test_a_telephone_shows_all_of_it(platform: Platform, arrive: Callable[..., Person]) -> None:
    path, form = made(platform, "Narrow", instructions="One line. " * 30)
    platform.call("PATCH", path, {"config": {"instructions": "Another line.\n" * 30}, "note": "n" * 500})
    template = f"{TEMPLATES}{template_made(platform, 'Narrow')}/"
    fields = {"agents": ["narrow", "a" * 40], "changes": {"config": {"max_turns": 3}}}
    task_id = platform.call("POST", "/api/v1/agents/bulk", fields)["result"]["task_id"]
    person = arrive(form, viewport={"width": 390, "height": 844}, is_mobile=True)
    addresses = (
        form,
        f"{form.removesuffix('change/')}compare/",
        AGENTS,
        f"{AGENTS}import/",
        "/admin/core/auditentry/",
        f"{template}change/",
        f"{template}instantiate/",
        f"{AGENTS}several/{task_id}/",
    )
    for address in addresses:
        person.page.goto(address)
        assert person.page.evaluate(OUTSIDE, 390) == [], address
    person.page.goto(f"{AGENTS}?q=Narrow")
    person.page.locator(".action-select").first.check()
    person.page.select_option("select[name=action]", "change_several")
    person.page.click("button[name=index]")
    expect(person.page.locator("#id_config_max_turns")).to_be_visible()
    assert person.page.evaluate(OUTSIDE, 390) == []
