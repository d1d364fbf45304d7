// The header's state chip and progress bar. The value is JSON from the server; every text goes in as textContent.
// What changes all the time is asked for here and put on the page here: an event of Gradio's visits every component.
// When something has changed that the server decides, "apply" has it fill in the list of runs and the chosen one's state.
// Panels that follow the run (follow.js) are told when another one is shown, or this one got a model or changed its state.
(() => {
  const PAUSES = { starting: 700, stopping: 700, running: 2000, waiting: 2000 }; // milliseconds between two looks
  const OTHERWISE = 2500;
  let shown = {}; // the server's value
  let condition;
  let timer = null;
  const find = (selector) => element.querySelector(selector);
  // Getting ready and learning are alike for everyone but the chip.
  const phase = (state) => (state === "starting" ? "running" : state);
  const conditionOf = (status) => JSON.stringify([status.run, phase(status.state), status.has_model]);

  function duration(seconds) {
    if (seconds >= 5400) return `${(seconds / 3600).toFixed(1)} h left`;
    if (seconds >= 90) return `${Math.round(seconds / 60)} min left`;
    return `${Math.max(0, Math.round(seconds))} s left`;
  }

  function draw(status) {
    const root = find(".fl-status");
    root.dataset.state = status.state;
    root.title = status.message || "";
    find(".fl-chip-text").textContent = status.label || "";
    const percent = Math.round(100 * Math.min(1, Math.max(0, status.progress || 0)));
    const bar = find(".fl-progress");
    bar.setAttribute("aria-valuenow", String(percent));
    bar.querySelector("i").style.width = `${percent}%`;
    const left = status.remaining_seconds;
    find(".fl-left").textContent =
      status.state === "running" ? (typeof left === "number" && percent < 100 ? duration(left) : `${percent} %`) : status.note || "";
    document.title = status.state === "running" ? `${percent} % · FundamentaLLM` : "FundamentaLLM";
  }

  function show() {
    let status;
    try {
      status = JSON.parse(props.value || "{}");
    } catch {
      return;
    }
    if (!find(".fl-status") || !status.state) return;
    shown = status;
    draw(status);
    if (conditionOf(status) !== condition) {
      condition = conditionOf(status);
      setTimeout(() => { // when the answer's other parts, the selector's value among them, are in place too
        document.documentElement.dataset.run = condition;
        document.dispatchEvent(new CustomEvent("fundamentallm-run"));
      });
    }
    schedule(PAUSES[status.state] || OTHERWISE);
  }

  function schedule(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(look, milliseconds);
  }

  async function look() {
    if (!element.isConnected) return;
    if (!shown.state) return schedule(OTHERWISE);
    try {
      accept(await server.look({ run: shown.run, secret: shown.secret }));
    } catch {
      schedule(OTHERWISE); // The server is busy or restarting.
    }
  }

  function accept(status, next) {
    const about = status && (status.run === undefined || status.run === shown.run);
    if (about && (status.listed !== shown.listed || conditionOf(status) !== condition)) {
      trigger("apply");
    } else if (about) {
      draw(status);
      find(".fl-status").classList.toggle("fl-beat", status.state in PAUSES && !find(".fl-beat"));
    }
    schedule(next || PAUSES[(about && status.state) || shown.state] || OTHERWISE);
  }

  // The live chart asks too while it is in sight, and has this answered with it: then nothing is asked here meanwhile.
  document.addEventListener("fundamentallm-look", ({ detail }) => accept(detail.status, detail.next + 1000));
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && schedule(0));
  watch("value", show);
  show();
})();
