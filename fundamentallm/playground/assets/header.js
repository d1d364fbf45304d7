// The header's state chip and progress bar. The value is JSON from the server; every text goes in as textContent.
// "select" tells the server's handlers that another run is shown, or that this one got a model or changed its state.
(() => {
  let condition;
  const find = (selector) => element.querySelector(selector);

  function duration(seconds) {
    if (seconds >= 5400) return `${(seconds / 3600).toFixed(1)} h left`;
    if (seconds >= 90) return `${Math.round(seconds / 60)} min left`;
    return `${Math.max(0, Math.round(seconds))} s left`;
  }

  function show() {
    let status;
    try {
      status = JSON.parse(props.value || "{}");
    } catch {
      return;
    }
    const root = find(".fl-status");
    if (!root || !status.state) return;
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
    const now = JSON.stringify([status.run, status.state, status.has_model]);
    if (now !== condition) {
      condition = now;
      trigger("select");
    }
  }

  watch("value", show);
  show();
})();
