"""The Publish tab: in a real browser against a small Hub on loopback, signed in by every way there is."""

from __future__ import annotations

import json
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import page_opener
from gradio_client import Client
from hub_server import Hub, running_hub

import fundamentallm as fl
from fundamentallm.playground.publishing import repository_name
from fundamentallm.runs.run_directory import RunDirectory

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect

ALICE, BOB, OWNER = "hf_secretOfAlice0123456789", "hf_secretOfBob9876543210", "hf_secretOfTheServersOwner"
MOCK = "mock-oauth-token-for-local-dev"  # what Gradio hands out where it only acts signing in
SECRETS = (ALICE, BOB, OWNER)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users = {ALICE: "alice", BOB: "bob", OWNER: "owner", MOCK: "visitor"}
        hub.sign_ins = {"alice": ALICE, "bob": BOB}
        yield hub


@pytest.fixture(autouse=True)
def empty(hub: Hub) -> None:
    hub.repositories.clear()
    hub.failures.clear()
    hub.requests.clear()
    hub.seconds_per_commit = 0.0


def server_at(serve, tmp_path_factory, hub: Hub, *, public: bool = False, **variables: str):
    directory = tmp_path_factory.mktemp("publish")
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(directory / "home"), "HF_TOKEN": ""}
    return serve(directory, public=public, variables=settings | variables)


@pytest.fixture(scope="module")
def local(serve, tmp_path_factory, hub: Hub):
    """On a computer whose user is signed in as Alice."""
    with server_at(serve, tmp_path_factory, hub, HF_TOKEN=ALICE) as server:
        yield server


@pytest.fixture(scope="module")
def stranger(serve, tmp_path_factory, hub: Hub):
    """On a computer where nobody is signed in."""
    with server_at(serve, tmp_path_factory, hub) as server:
        yield server


@pytest.fixture(scope="module")
def mocked(serve, tmp_path_factory, hub: Hub):
    """A public page on which Gradio acts signing in; the server has an owner whose token is none of the visitors'."""
    with server_at(serve, tmp_path_factory, hub, public=True, HF_TOKEN=OWNER, OAUTH_CLIENT_ID="x") as server:
        yield server


@pytest.fixture(scope="module")
def space(serve, tmp_path_factory, hub: Hub):
    """What a Space's machine looks like, with a real provider of identities on loopback."""
    oauth = {
        "OAUTH_CLIENT_ID": "client",
        "OAUTH_CLIENT_SECRET": "client-secret",
        "OAUTH_SCOPES": "openid profile contribute-repos",
        "OPENID_PROVIDER_URL": hub.endpoint,
    }
    variables = {"SYSTEM": "spaces", "SPACE_ID": "owner/page", "HF_TOKEN": OWNER, **oauth}
    with server_at(serve, tmp_path_factory, hub, public=True, **variables) as server:
        yield server


@pytest.fixture(scope="module")
def opened_home(local, browser):
    """Alice's page, opened once for several tests: opening it takes seconds."""
    with page_opener(browser) as opened:
        yield publish_tab(opened(local.url))


@pytest.fixture
def home(opened_home):
    """Alice's page, with nothing filled in."""
    for name in ("name", "message"):
        opened_home.locator(f"#publish-{name} input, #publish-{name} textarea").first.fill("")
    opened_home.locator("#publish-visibility label", has_text="Private").click()
    return opened_home


def publish_tab(page):
    page.get_by_role("tab", name="Publish").click()
    expect(page.locator("#publish-model .fl-run-name")).to_have_text("Tiny model (bundled)")
    return page


def push(page, name: str, button: str = "#publish-push") -> None:
    page.locator("#publish-name input, #publish-name textarea").first.fill(name)
    page.locator(button).click()


def no_secret_in(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


def written_files(directory: Path) -> str:
    return "\n".join(
        path.read_bytes().decode("latin-1")
        for path in directory.rglob("*")
        if path.is_file() and "home" not in path.parts
    )


def tokens_used(hub: Hub) -> set[str]:
    return {authorization.removeprefix("Bearer ") for *_, authorization in hub.requests if authorization}


# Taking it home ------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("ending", ["zip", "safetensors", "pt"])
def test_downloads(home, tmp_path: Path, ending: str) -> None:
    page = home
    with page.expect_download() as started:
        page.locator(f"#publish-{ending}").click()
    assert started.value.suggested_filename == f"tiny-tales.{ending}"
    path = tmp_path / f"tiny-tales.{ending}"
    started.value.save_as(path)
    if ending == "zip":
        with zipfile.ZipFile(path) as archive:
            assert "tiny-tales/trainer_state.pt" not in archive.namelist()
            archive.extractall(tmp_path)
        path = tmp_path / "tiny-tales"
        transformers = pytest.importorskip("transformers")
        transformers.AutoModelForCausalLM.from_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(path)
    ours = fl.load(Path(fl.__file__).parents[1] / "examples" / "tiny-checkpoint", "cpu")
    assert fl.load(path, "cpu").generate(PROMPT, strategy="greedy") == ours.generate(PROMPT, strategy="greedy")


@pytest.mark.browser
def test_what_cannot_be_had_says_why(home) -> None:
    page = home
    expect(page.locator("#publish-gguf")).to_be_disabled()
    expect(page.locator("#publish-gguf")).to_contain_text("A character vocabulary cannot be expressed in GGUF")
    expect(page.locator("#publish-model .fl-facts")).to_contain_text("opens with transformers")


@pytest.mark.browser
def test_a_run_without_a_model_says_what_to_do(local, open_page) -> None:
    run = RunDirectory.create(local.runs_directory, "unborn", config=fl.load_config(preset="small"))
    try:
        page = open_page(local.url)
        page.get_by_role("tab", name="Publish").click()
        expect(page.locator("#publish-model .fl-empty")).to_contain_text("no saved model yet")
        for name in ("push", "space", "zip", "pt"):
            expect(page.locator(f"#publish-{name}")).to_be_disabled()
    finally:
        for file in sorted(run.path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        run.path.rmdir()


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("2026-01-31_120000-tiny-tales", "tiny-tales"),
        ("my run", "my-run"),
        ("2026-01-31_120000-日本", "my-model"),
        ("a..b--c.", "a.b-c"),
        ("x" * 300, "x" * 90),
    ],
)
def test_a_run_suggests_a_name_that_the_hub_takes(run_id: str, name: str) -> None:
    assert repository_name(run_id) == name


# At localhost --------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_push_and_space_as_the_user_of_this_computer(local, home, hub: Hub) -> None:
    page = home
    expect(page.locator("#publish-owner")).to_contain_text("It will belong to alice")
    expect(page.locator("#publish-token")).to_be_hidden()
    name = page.locator("#publish-name input, #publish-name textarea").first
    expect(name).to_have_attribute("placeholder", "tiny-tales")
    page.locator("#publish-message input, #publish-message textarea").first.fill("the first")
    page.locator("#publish-push").click()
    link = page.locator("#publish-result a")
    expect(link).to_have_attribute("href", f"{hub.endpoint}/alice/tiny-tales")
    assert hub.model("alice/tiny-tales").private and hub.model("alice/tiny-tales").commits[-1][1] == "the first"
    page.locator("#publish-space").click()
    expect(link).to_have_attribute("href", f"{hub.endpoint}/spaces/alice/tiny-tales")
    assert hub.space("alice/tiny-tales").private
    expect(page.locator("#publish-push")).to_be_enabled()
    expect(page.locator("#publish-stop")).to_be_hidden()
    no_secret_in(page.content(), local.log.read_text(), written_files(local.runs_directory))


@pytest.mark.browser
def test_a_failure_is_one_sentence_and_pushing_again_works(local, home, hub: Hub) -> None:
    page = home
    page.locator("#publish-visibility label", has_text="Public").click()
    hub.fail("POST", "/api/repos/create", 500, times=1)
    page.locator("#publish-push").click()
    error = page.locator("#publish-result .fl-notice-error")
    expect(error).to_contain_text("the Hub has a problem of its own", timeout=60_000)
    expect(page.locator("#publish-push")).to_be_enabled()
    push(page, "alice/bad name!")
    expect(error).to_contain_text("that is no name of a repository")
    push(page, "bob/his")
    expect(error).to_contain_text("no right to do that")
    push(page, "alone", "#publish-space")
    expect(error).to_contain_text("A Space needs its model on the Hub first")
    push(page, "better")
    expect(page.locator("#publish-result a")).to_have_text(f"{hub.endpoint}/alice/better")
    assert not hub.model("alice/better").private
    no_secret_in(page.content(), local.log.read_text())


@pytest.mark.browser
def test_a_push_can_be_stopped_between_its_steps(home, hub: Hub) -> None:
    page = home
    hub.fail("GET", "/api/models/", 0, times=1)  # keeps silent
    push(page, "slow")
    expect(page.locator("#publish-result progress")).to_be_visible()
    while not any(path.startswith("/api/models/") for _, path, _ in hub.requests):
        page.wait_for_timeout(50)
    page.locator("#publish-stop").click()
    expect(page.locator("#publish-result")).to_contain_text("Stopped.")
    expect(page.locator("#publish-push")).to_be_enabled()
    push(page, "quick")
    expect(page.locator("#publish-result a")).to_contain_text("alice/quick")
    assert len(hub.model("alice/slow").commits) == 1, "created, and nothing in it"


@pytest.mark.browser
def test_a_pasted_token_is_used_once_and_kept_nowhere(stranger, open_page, hub: Hub) -> None:
    page = publish_tab(open_page(stranger.url))
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    expect(page.locator("#publish-owner")).to_contain_text("paste a token")
    push(page, "mine")
    error = page.locator("#publish-result .fl-notice-error")
    expect(error).to_contain_text("Pushing needs a token")
    token = page.locator("#publish-token input")
    expect(token).to_have_attribute("type", "password")
    token.fill("hf_wrong")
    token.blur()
    expect(page.locator("#publish-owner")).to_contain_text("does not accept the token")
    token.fill(BOB)
    token.blur()
    expect(page.locator("#publish-owner")).to_contain_text("It will belong to bob")
    push(page, "alice/hers")
    expect(error).to_contain_text("no right to do that")
    expect(token).to_have_value("")
    token.fill(BOB)
    push(page, "mine")
    expect(page.locator("#publish-result a")).to_have_text(f"{hub.endpoint}/bob/mine")
    expect(token).to_have_value("")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    no_secret_in(page.content(), kept, *addresses, stranger.log.read_text(), written_files(stranger.log.parent))
    config = page.request.get(f"{stranger.url}config").text()
    no_secret_in(config)
    assert tokens_used(hub) == {"hf_wrong", BOB}


# Visitors ------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_visitor_signs_in_and_out(mocked, open_page, hub: Hub) -> None:
    page = publish_tab(open_page(mocked.url))
    expect(page.locator("#publish-owner")).to_contain_text("Sign in, and the model becomes yours")
    expect(page.locator("#publish-token")).to_be_hidden()
    push(page, "tales")
    expect(page.locator("#publish-result .fl-notice-error")).to_contain_text("Sign in with Hugging Face first")
    assert not hub.requests, "the server's own token is nobody's here"
    page.locator("#publish-sign-in").click()
    expect(page.locator("#publish-sign-in")).to_contain_text(
        "Sign out (owner)"
    )  # whose name Gradio borrows for its act
    expect(page.locator("#publish-owner")).to_be_visible()  # back on the tab that was left
    expect(page.locator("#publish-owner")).to_contain_text("It will belong to owner")
    push(page, "tales")
    expect(page.locator("#publish-result a")).to_have_text(f"{hub.endpoint}/visitor/tales")
    assert tokens_used(hub) == {MOCK}
    page.locator("#publish-sign-in").click()
    expect(page.locator("#publish-owner")).to_contain_text("Sign in, and the model becomes yours")
    no_secret_in(page.content(), mocked.log.read_text())


@pytest.mark.browser
def test_two_visitors_of_a_space_at_once_each_with_their_own_account(space, browser, open_page, hub: Hub) -> None:
    pages = {}
    for user in ("alice", "bob"):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        context.add_cookies([{"name": "hub_user", "value": user, "url": "http://127.0.0.1/"}])
        page = publish_tab(open_page(space.url, context=context, on_space=True))
        page.locator("#publish-sign-in").click()
        expect(page.locator("#publish-sign-in")).to_contain_text(f"Sign out ({user})")
        expect(page.locator("#publish-owner")).to_contain_text(f"It will belong to {user}")
        pages[user] = page
    hub.requests.clear()
    hub.seconds_per_commit = 1.5  # so that the two overlap
    for page in pages.values():
        push(page, "tales")
    for user, page in pages.items():
        expect(page.locator("#publish-result a")).to_have_text(f"{hub.endpoint}/{user}/tales")
        no_secret_in(page.content(), page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])"))
    assert set(hub.repositories) == {("model", "alice/tales"), ("model", "bob/tales")}
    for method, path, authorization in hub.requests:
        owner = {"alice": ALICE, "bob": BOB}
        for user, token in owner.items():
            if f"/{user}/" in path:
                assert authorization == f"Bearer {token}", (method, path)
    assert tokens_used(hub) == {ALICE, BOB}
    no_secret_in(space.log.read_text(), written_files(space.runs_directory))
    for page in pages.values():
        page.context.close()


# From a program ------------------------------------------------------------------------------------------------------


def clients(url: str, tokens: Sequence[str]) -> list[Client]:
    return [Client(url, verbose=False, oauth_token=token) for token in tokens]


def test_two_programs_at_once_each_with_their_own_token(mocked, hub: Hub) -> None:
    hub.seconds_per_commit = 1.0
    found: dict[int, str] = {}

    def work(number: int, client: Client) -> None:
        found[number] = client.predict("bundled", "tales", False, "mine", api_name="/push")

    threads = [
        threading.Thread(target=work, args=(number, client))
        for number, client in enumerate(clients(mocked.url, [ALICE, BOB, ALICE]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: f"{hub.endpoint}/alice/tales", 1: f"{hub.endpoint}/bob/tales", 2: f"{hub.endpoint}/alice/tales"}
    assert tokens_used(hub) == {ALICE, BOB}
    (client,) = clients(mocked.url, [BOB])
    assert client.predict("bundled", "tales", False, api_name="/push_space") == f"{hub.endpoint}/spaces/bob/tales"
    no_secret_in(mocked.log.read_text(), written_files(mocked.runs_directory))


def test_what_a_program_is_refused(mocked, local, hub: Hub) -> None:
    for endpoint in ("/push", "/push_space"):
        with pytest.raises(Exception, match="Sign in with Hugging Face first"):
            Client(mocked.url, verbose=False).predict("bundled", "tales", api_name=endpoint)
        (client,) = clients(mocked.url, ["hf_wrong"])
        with pytest.raises(Exception, match="does not accept the token") as error:
            client.predict("bundled", "tales", api_name=endpoint)
        assert "hf_wrong" not in str(error.value)
        (client,) = clients(mocked.url, [ALICE])
        with pytest.raises(Exception, match="no such run"):
            client.predict("somebody-elses", "tales", api_name=endpoint)
        with pytest.raises(Exception, match="The repository needs a name"):
            client.predict("bundled", " ", api_name=endpoint)
    assert OWNER not in tokens_used(hub) and not hub.repositories
    # At localhost the token of this computer's user will do.
    url = Client(local.url, verbose=False).predict("bundled", "tales", api_name="/push")
    assert url == f"{hub.endpoint}/alice/tales"


def test_who_needs_a_token_is_told_so(mocked) -> None:
    shown = Client(mocked.url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name for name, about in shown.items() if about.get("oauth_token")} == {"/push", "/push_space"}
    assert not re.search(r"hf_\w+", json.dumps(shown))


# On a phone ----------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(local, open_page, scheme: str) -> None:
    page = publish_tab(open_page(local.url, width=390, height=844, scheme=scheme))
    expect(page.locator("#publish-push")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
