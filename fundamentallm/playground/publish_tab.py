"""The Publish tab: take the model home, push it to the Hub, and give it a page of its own there."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fundamentallm.errors import FundamentaLLMError
from fundamentallm.playground.errors import shown_to_the_user
from fundamentallm.playground.measuring import Progress, Work, followed
from fundamentallm.playground.panels import busy, panel, stoppable
from fundamentallm.playground.publishing import (
    ACCOUNTS,
    PACKAGES,
    Asked,
    Push,
    Report,
    describe,
    pack,
    repository_name,
    required_token,
    sign_in_possible,
    token_of,
)
from fundamentallm.playground.settings import PlaygroundContext, PlaygroundSettings, Visitor

PRIVATE, PUBLIC = "private", "public"

_PACKAGE_TEXTS = {
    ".zip": "Folder, as .zip\nWeights, vocabulary and settings: what transformers opens.",
    ".safetensors": "One file, .safetensors\nFundamentaLLM loads it as it is.",
    ".pt": "One file, .pt\nThe same for torch.load, plain weights only.",
    ".gguf": "One file, .gguf\nFor llama.cpp and the programs built on it.",
}
# The browser saves a file when a download button is pressed, which this does once the file is there.
_SAVE = """() => {
    const button = document.querySelector("#publish-file");
    setTimeout(() => (button.matches("button, a") ? button : button.querySelector("button, a")).click(), 120);
}"""
# Signing in leaves the page and comes back to it: to the tab where it was left.
_COME_BACK = """() => {
    document.addEventListener("click", (event) => {
        if (event.target.closest("#publish-sign-in")) sessionStorage.setItem("fundamentallm-tab", "Publish");
    }, true);
    const name = sessionStorage.getItem("fundamentallm-tab");
    sessionStorage.removeItem("fundamentallm-tab");
    const tabs = [...document.querySelectorAll("#tabs [role=tab]")];
    if (name) tabs.find((tab) => tab.textContent.trim() === name)?.click();
}"""
_IDLE_NOTE = "Nothing has been pushed yet."


@dataclass(frozen=True)
class _Form:
    account: gr.HTML
    token: gr.Textbox
    name: gr.Textbox
    visibility: gr.Radio
    message: gr.Textbox
    push: gr.Button
    space: gr.Button
    stop: gr.Button
    result: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.result, self.token, self.push, self.space, self.stop]


def build(context: PlaygroundContext, tab: gr.Tab) -> None:
    """Lay the tab out and connect it."""
    settings = context.settings
    with gr.Row(elem_id="publish-layout"):
        with gr.Column(elem_id="publish-home", min_width=300):
            model = panel("model", elem_id="publish-model", follows_run=True)
            packages = [
                gr.Button(_PACKAGE_TEXTS[ending], elem_classes="fl-package", elem_id=f"publish-{ending[1:]}")
                for ending in PACKAGES
            ]
            packing = panel("notices", elem_id="publish-packing")
            file = gr.DownloadButton(visible="hidden", elem_id="publish-file")
        with gr.Column(elem_id="publish-hub", min_width=320):
            form = _hub_form()

    def show(run_id: str, secret: str | None, request: gr.Request) -> list[object]:
        try:
            found = describe(settings, run_id, Visitor.of(secret, request))
        except FundamentaLLMError as error:
            return [{"empty": str(error)}, *[gr.update(interactive=False)] * (len(packages) + 2), gr.skip()]
        gguf = gr.update(interactive=found.why_no_gguf is None, value=_gguf_text(found.why_no_gguf))
        shown = {"label": found.label, "facts": list(found.facts)}
        ready = gr.update(interactive=True)
        return [shown, *[ready] * (len(packages) - 1), gguf, ready, ready, gr.update(placeholder=found.name)]

    def who(
        pasted: str, request: gr.Request, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None
    ) -> list[object]:
        return account_view(settings, pasted, request, token, profile)

    model.select(
        show,
        [context.run_selector, context.visitor_secret],
        [model, *packages, form.push, form.space, form.name],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=2,
        concurrency_id="described",
        api_visibility="private",
    )
    gr.on(
        [tab.select, form.token.blur, form.token.submit],
        who,
        [form.token],
        [form.account, form.token],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
        concurrency_id="accounts",
        api_visibility="private",
    )
    if sign_in_possible():
        blocks = gr.context.Context.root_block
        assert blocks is not None, "build is called inside gr.Blocks"
        blocks.load(None, None, None, js=_COME_BACK, api_visibility="private")
    for ending, button in zip(PACKAGES, packages, strict=True):
        _connect_download(context, ending, button, packing, file)
    _connect_pushes(context, form)


def _connect_download(
    context: PlaygroundContext, ending: str, button: gr.Button, packing: gr.HTML, file: gr.DownloadButton
) -> None:
    def prepare(run_id: str, secret: str | None, request: gr.Request) -> list[object]:
        with shown_to_the_user():
            return [str(pack(context.settings, run_id, Visitor.of(secret, request), ending)), {}]

    event = button.click(
        prepare,
        [context.run_selector, context.visitor_secret],
        [file, packing],
        show_progress="hidden",
        trigger_mode="once",
        concurrency_limit=2,
        concurrency_id="packing",
        api_visibility="private",
    )
    event.success(None, None, None, js=_SAVE, api_visibility="private")


def _connect_pushes(context: PlaygroundContext, form: _Form) -> None:
    settings = context.settings

    def follow(what: str, make: Callable[[], Work]) -> Iterator[list[object]]:
        run = secrets.token_hex(4)
        try:
            work = make()
            yield [{"doing": "Getting ready", "run": run}, gr.update(value=""), *busy(2)]
            for step in followed(work):
                if isinstance(step, Progress):
                    yield [{"doing": step.doing, "run": run}, *[gr.skip()] * 4]
                else:
                    yield [{"done": what, "url": step["url"]}, *[gr.skip()] * 4]
        except FundamentaLLMError as error:
            yield [{"error": str(error)}, gr.update(value=""), *[gr.skip()] * 3]

    def publishing(what: str, push: Callable[[Push, str, Report, Asked], str]) -> Callable[..., Iterator[list[object]]]:
        # Gradio fills in the last two by their types.
        def publish(
            run_id: str,
            secret: str | None,
            name: str,
            visibility: str,
            message: str,
            pasted: str,
            request: gr.Request,
            signed_in: gr.OAuthToken | None,
        ) -> Iterator[list[object]]:
            def make() -> Work:
                token = required_token(settings, signed_in, pasted, request)
                visitor, repository = Visitor.of(secret, request), named(name, run_id)
                wanted = Push.checked(settings, run_id, visitor, repository, visibility != PUBLIC, message)
                return lambda progress, cancelled: {
                    "url": push(wanted, token, lambda what, share: progress(share, what), cancelled)
                }

            yield from follow(what, make)

        return publish

    publish_model = publishing("The model is on the Hub", Push.model_to_hub)
    publish_space = publishing("The Space is on the Hub; it takes a few minutes to start", Push.space_to_hub)
    inputs = [context.run_selector, context.visitor_secret, form.name, form.visibility, form.message, form.token]
    limits: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "once",
        "concurrency_limit": 4,
        "concurrency_id": "pushing",
        "api_visibility": "private",
    }
    events: list[Any] = [
        form.push.click(publish_model, inputs, form.outputs, **limits),
        form.space.click(publish_space, inputs, form.outputs, **limits),
    ]
    stoppable(events, [form.push, form.space], form.stop, form.result, lambda _: {"error": _STOPPED})


def named(name: str | None, run_id: str) -> str:
    """What was typed, or the name that stands in the empty field."""
    return (name or "").strip() or repository_name(run_id)


_STOPPED = (
    "Stopped. Either its commit was on the way already and is complete, or nothing of it can be seen; push again."
)


def account_view(
    settings: PlaygroundSettings,
    pasted: str,
    request: gr.Request | None,
    token: gr.OAuthToken | None,
    profile: gr.OAuthProfile | None,
) -> list[object]:
    """Who the model will belong to, and whether a token has to be pasted for that."""
    hidden, asked = gr.update(visible=False), gr.update(visible=True)
    if token is not None:
        return [{"name": profile.username if profile is not None else None, "note": "Signed in."}, hidden]
    if settings.public:
        signing = sign_in_possible()
        note = (
            "Sign in, and the model becomes yours: this page pushes with your account and may do nothing else with it."
            if signing
            else "Nobody can sign in on this page: download the model, and push it with fundamentallm push."
        )
        return [{"note": note}, hidden]
    found = token_of(settings, None, pasted, request)
    if found is None:
        return [{"note": "Nobody is signed in on this computer: run hf auth login once, or paste a token."}, asked]
    try:
        name = ACCOUNTS.name(found)
    except FundamentaLLMError as error:
        return [{"error": str(error)}, asked]
    typed = bool(pasted and pasted.strip())
    note = "By the token below." if typed else "Signed in on this computer."
    return [{"name": name, "note": note}, asked if typed else hidden]


def _hub_form() -> _Form:
    gr.HTML(
        "<h3>To the Hugging Face Hub</h3><p>A repository with the model and a card that describes it, or a new "
        "version of one.</p>",
        elem_classes="fl-heading",
        apply_default_css=False,
    )
    with gr.Row(elem_id="publish-account"):
        account = panel("account", {"note": "Looking who is signed in…"}, elem_id="publish-owner")
        if sign_in_possible():
            gr.LoginButton(
                "Sign in with Hugging Face",
                "Sign out ({})",
                size="md",
                elem_id="publish-sign-in",
                scale=0,
                min_width=240,
            )
    token = gr.Textbox(
        label="Token with write access",
        info="For one push: it is kept nowhere, and this field is emptied. Make one at huggingface.co/settings/tokens.",
        type="password",
        visible=False,
        elem_id="publish-token",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
    )
    with gr.Row(elem_id="publish-form"):
        name = gr.Textbox(
            label="Repository",
            info="Left empty, it is called as shown; in an organisation: organisation/name.",
            max_length=200,
            elem_id="publish-name",
        )
        visibility = gr.Radio(
            [("Private", PRIVATE), ("Public", PUBLIC)],
            value=PRIVATE,
            label="Who may see it",
            elem_classes="fl-segments",
            elem_id="publish-visibility",
        )
    message = gr.Textbox(
        label="What is new (optional)", placeholder="Trained longer", max_length=200, elem_id="publish-message"
    )
    with gr.Row(elem_classes="fl-actions"):
        push = gr.Button("Push the model", variant="primary", scale=2, elem_id="publish-push")
        space = gr.Button("Create a Space for it", scale=1, elem_id="publish-space")
        stop = gr.Button("Stop", variant="stop", visible=False, scale=1, elem_id="publish-stop")
    result = panel("publish", {"empty": _IDLE_NOTE}, elem_id="publish-result")
    gr.HTML(
        "<p><b>A Space</b> is a page of the same name in which the pushed model writes: prompt, greedy, temperature, "
        "top-k and top-p side by side, with stock transformers and nothing of ours. For a private model it needs a "
        "secret HF_TOKEN that may read it.</p>",
        elem_classes="fl-heading",
        apply_default_css=False,
    )
    return _Form(account, token, name, visibility, message, push, space, stop, result)


def _gguf_text(why_not: str | None) -> str:
    return _PACKAGE_TEXTS[".gguf"] if why_not is None else f"One file, .gguf\n{why_not}"
