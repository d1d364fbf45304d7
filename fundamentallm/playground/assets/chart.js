// The live training view. While it is visible it asks the server again and again for what is new since the last time;
// Plotly extends its traces in place, so zoom survives and nothing flickers. Texts of models go in as textContent.
(() => {
  const SMOOTHING = 0.9; // Weight of the past in the running mean of the training loss, once there is a past.
  const MAX_DRAWN = 6000; // Beyond this, fetch the thinned history again rather than let the page grow.
  const MAX_SAMPLES = 60;
  // Who watches and what is watched share the processor. So the pause follows from how long drawing takes here. Without
  // a GPU an update takes three times what Plotly does (15–20 ms of 60): painting and the answer are the rest.
  const PAUSE_PER_DRAWING = 250;
  const SHORTEST_PAUSE = 1000;
  const LONGEST_PAUSE = 5000;
  const SMALL_CHARTS_EVERY = 2;
  const find = (selector) => element.querySelector(selector);
  const loss = find(".fl-loss-chart");
  const rate = find(".fl-rate-chart");
  const speed = find(".fl-speed-chart");
  const list = find(".fl-samples ol");
  const switches = Object.fromEntries([...element.querySelectorAll(".fl-switches input")].map((box) => [box.name, box]));

  let target = { run: null, secret: null };
  let curve = emptyCurve();
  let offset = 0;
  let sampleCount = 0;
  let generation = 0; // Answers to questions about another run, or asked before a restart of the curve, are dropped.
  let state = "empty";
  let timer = null;
  let drawn = false;
  let phase = null;
  let baselines = null; // What counting models reach; null until the server knows.
  let fresh = true; // The next answer begins the curve anew.
  let drawing = 0; // Milliseconds, a running mean.
  let updates = 0;
  let smallDrawn = 0; // Points that the two small charts have.

  function emptyCurve() {
    return { step: [], train: [], smooth: [], valStep: [], val: [], rate: [], speed: [], mean: 0, count: 0 };
  }

  function colours() {
    const style = getComputedStyle(find(".fl-live"));
    const read = (name) => style.getPropertyValue(name).trim();
    return {
      train: read("--fl-train"),
      validation: read("--fl-validation"),
      earlier: read("--fl-earlier"),
      ink: read("--fl-ink-soft"),
      grid: read("--fl-grid"),
      panel: read("--fl-panel"),
      font: style.fontFamily,
    };
  }

  // ---- drawing -------------------------------------------------------------------------------------------------

  function axis(c, extra) {
    return {
      gridcolor: c.grid, zeroline: false, linecolor: c.grid, tickcolor: c.grid, automargin: true,
      tickfont: { color: c.ink, size: 11 }, ...extra,
    };
  }

  // Lines that the curve has to cross. As shapes they never stretch the axes: the curve decides what is in sight.
  function baselineLines(c) {
    return (switches.baselines.checked ? baselines || [] : []).map((baseline) => ({
      type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: baseline.loss, y1: baseline.loss,
      line: { color: c.earlier, width: 1, dash: "dash" },
      label: { text: baseline.name, textposition: "end", yanchor: "bottom", padding: 2, font: { size: 10, color: c.ink } },
    }));
  }

  async function fetchBaselines() {
    const asked = generation;
    const answer = await server.baselines({ run: target.run, secret: target.secret });
    if (asked !== generation || !answer || !answer.baselines) return;
    baselines = answer.baselines;
    if (drawn) Plotly.relayout(loss, { shapes: lossLayout(colours()).shapes });
  }

  function lossLayout(c) {
    const annotation = phase && phase.since_step !== null && phase.since_step !== undefined;
    return {
      uirevision: target.run, margin: { l: 44, r: 12, t: 26, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { family: c.font, color: c.ink, size: 12 }, hovermode: "x unified",
      hoverlabel: { bgcolor: c.panel, bordercolor: c.grid, font: { color: c.ink } },
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis(c, { title: { text: "step", font: { size: 11 }, standoff: 6 }, showgrid: false, rangemode: "tozero" }),
      yaxis: axis(c, { type: switches.log.checked ? "log" : "linear", nticks: 7 }),
      shapes: [
        ...baselineLines(c),
        ...(annotation
          ? [{ type: "line", x0: phase.since_step, x1: phase.since_step, yref: "paper", y0: 0, y1: 1,
               line: { color: c.validation, width: 1, dash: "dot" } }]
          : []),
      ],
      annotations: annotation
        ? [{ x: phase.since_step, yref: "paper", y: 0, yanchor: "bottom", xanchor: "left", showarrow: false,
             text: " best, then overfitting", font: { size: 11, color: c.validation } }]
        : [],
    };
  }

  function smallLayout(c, format) {
    return {
      uirevision: target.run, margin: { l: 44, r: 8, t: 4, b: 20 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { family: c.font, color: c.ink, size: 10 }, showlegend: false,
      hovermode: "x", hoverlabel: { bgcolor: c.panel, bordercolor: c.grid, font: { color: c.ink } },
      xaxis: axis(c, { showgrid: false, nticks: 4, fixedrange: true, rangemode: "tozero" }),
      yaxis: axis(c, { nticks: 3, rangemode: "tozero", fixedrange: true, tickformat: format }),
    };
  }

  function lossTraces(c) {
    const smooth = switches.smooth.checked;
    return [
      { x: curve.step, y: curve.train, name: "training", mode: "lines", line: { color: c.train, width: smooth ? 1 : 1.6 },
        opacity: smooth ? 0.3 : 1, showlegend: !smooth, hoverinfo: smooth ? "skip" : "all", hovertemplate: smooth ? undefined : "%{y:.4f}" },
      { x: curve.step, y: curve.smooth, name: "training", mode: "lines", line: { color: c.train, width: 2.2 },
        visible: smooth, hovertemplate: "%{y:.4f}" },
      { x: curve.valStep, y: curve.val, name: "validation", mode: "lines+markers", line: { color: c.validation, width: 2.2 },
        marker: { size: 5, color: c.validation }, hovertemplate: "%{y:.4f}" },
    ];
  }

  // Copies: these two are extended later than the loss, from `curve`.
  function smallTrace(c, y, format) {
    return [{ x: curve.step.slice(), y: y.slice(), mode: "lines", line: { color: c.train, width: 1.5 }, hovertemplate: `%{y:${format}}<extra></extra>` }];
  }

  function draw() {
    if (!window.Plotly) {
      find(".fl-live-empty").textContent = "The chart library did not load: reload the page.";
      return;
    }
    const c = colours();
    const bar = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
    Plotly.react(loss, lossTraces(c), lossLayout(c), { responsive: true, displaylogo: false, modeBarButtonsToRemove: bar });
    Plotly.react(rate, smallTrace(c, curve.rate, ".2e"), smallLayout(c, "~g"), { responsive: true, displayModeBar: false });
    Plotly.react(speed, smallTrace(c, curve.speed, ",.0f"), smallLayout(c, "~s"), { responsive: true, displayModeBar: false });
    drawn = true;
    smallDrawn = curve.step.length;
    if (switches.earlier.checked) drawEarlier();
  }

  async function drawEarlier() {
    const asked = generation;
    let answer = { runs: [] };
    if (switches.earlier.checked && target.run) answer = await server.earlier({ run: target.run, secret: target.secret });
    if (asked !== generation || !drawn) return;
    const extra = loss.data.length - 3;
    if (extra > 0) await Plotly.deleteTraces(loss, Array.from({ length: extra }, (_, i) => 3 + i));
    const c = colours();
    const traces = (answer.runs || []).map((run) => ({
      x: run.step, y: run.loss, name: plain(run.name), mode: "lines", line: { color: c.earlier, width: 1.4 }, opacity: 0.55,
      showlegend: false, hovertemplate: "%{y:.4f}",
    }));
    if (traces.length) await Plotly.addTraces(loss, traces);
  }

  // Plotly reads a little HTML in names; a run is named after a file, so its name is a stranger's text.
  function plain(text) {
    return String(text).replace(/[<>&]/g, " ");
  }

  function append(columns) {
    const c = { step: [], train: [], smooth: [], valStep: [], val: [], rate: [], speed: [] };
    columns.step.forEach((step, i) => {
      const train = columns.train_loss[i];
      if (columns.val_loss[i] !== null) {
        c.valStep.push(step);
        c.val.push(columns.val_loss[i]);
      }
      if (train !== null) {
        // Short memory at first, where the curve falls too fast for a mean over many points to follow it.
        const past = Math.min(SMOOTHING, 1 - 1 / (1 + curve.count / 6));
        curve.mean = past * curve.mean + (1 - past) * train;
        curve.count += 1;
      }
      c.step.push(step);
      c.train.push(train);
      c.smooth.push(curve.count ? curve.mean : null);
      c.rate.push(columns.learning_rate[i]);
      c.speed.push(columns.tokens_per_second[i]);
    });
    if (!c.step.length) return;
    if (!drawn || fresh) {
      fresh = false;
      for (const name of Object.keys(c)) curve[name].push(...c[name]);
      draw();
      return;
    }
    // extendTraces pushes into the arrays the traces share with `curve`, or copies them; keep `curve` right either way.
    const lengths = Object.fromEntries(Object.keys(c).map((name) => [name, curve[name].length]));
    Plotly.extendTraces(loss, { x: [c.step, c.step, c.valStep], y: [c.train, c.smooth, c.val] }, [0, 1, 2]);
    for (const name of Object.keys(c)) curve[name] = curve[name].slice(0, lengths[name]).concat(c[name]);
  }

  function extendSmallCharts() {
    const from = smallDrawn;
    if (!drawn || from === curve.step.length) return;
    smallDrawn = curve.step.length;
    const x = [curve.step.slice(from)];
    Plotly.extendTraces(rate, { x, y: [curve.rate.slice(from)] }, [0]);
    Plotly.extendTraces(speed, { x, y: [curve.speed.slice(from)] }, [0]);
  }

  // ---- numbers, phase, samples ---------------------------------------------------------------------------------

  const formats = {
    val_loss: (v) => v.toFixed(3),
    train_loss: (v) => v.toFixed(3),
    best_val_loss: (v) => v.toFixed(3),
    step: (v, s) => v.toLocaleString("en") + (s.max_steps ? ` / ${s.max_steps.toLocaleString("en")}` : ""),
    tokens_per_second: (v) => Math.round(v).toLocaleString("en"),
    elapsed_seconds: (v) => (v < 90 ? `${Math.round(v)} s` : v < 5400 ? `${(v / 60).toFixed(1)} min` : `${(v / 3600).toFixed(1)} h`),
  };

  function showStatus(status) {
    state = status.state;
    find(".fl-live").dataset.state = state;
    for (const [name, format] of Object.entries(formats)) {
      const value = status[name];
      find(`[data-number="${name}"]`).textContent = typeof value === "number" && isFinite(value) ? format(value, status) : "–";
    }
    const told = phase && (!status.sentence || phase.kind === "overfitting") ? phase.sentence : "";
    const sentence = [status.sentence, told].filter(Boolean).join(" ");
    const line = find(".fl-phase");
    if (line.textContent !== sentence) line.textContent = sentence;
    line.dataset.kind = status.sentence ? state : phase ? phase.kind : "";
  }

  function addSamples(samples) {
    for (const sample of samples) {
      const item = document.createElement("li");
      const step = document.createElement("span");
      step.className = "fl-sample-step";
      step.textContent = `step ${Number(sample.step).toLocaleString("en")}`;
      const text = document.createElement("p");
      const written = sample.prompt ? String(sample.text) : String(sample.text).replace(/^\n+/, "");
      if (sample.prompt) {
        const prompt = document.createElement("mark");
        prompt.textContent = sample.prompt;
        text.append(prompt, written.startsWith(sample.prompt) ? written.slice(sample.prompt.length) : written);
      } else {
        text.textContent = written;
        text.classList.toggle("fl-blank", !written.trim());
      }
      item.append(step, text);
      list.prepend(item);
    }
    while (list.children.length > MAX_SAMPLES) list.lastElementChild.remove();
  }

  // ---- polling -------------------------------------------------------------------------------------------------

  // Ask for everything again; what is drawn stays until the answer replaces it, so that nothing flickers.
  function forget() {
    generation += 1;
    curve = emptyCurve();
    offset = 0;
    sampleCount = 0;
    phase = null;
    fresh = true;
  }

  function restart() {
    forget();
    baselines = null;
    list.replaceChildren();
    if (window.Plotly && drawn) for (const chart of [loss, rate, speed]) Plotly.purge(chart);
    drawn = false;
  }

  function retarget() {
    let wanted;
    try {
      wanted = JSON.parse(props.value || "{}");
    } catch {
      return;
    }
    if (wanted.run !== target.run || wanted.secret !== target.secret) {
      target = { run: wanted.run, secret: wanted.secret };
      restart();
      find(".fl-run-name").textContent = wanted.title || "";
      find(".fl-command").hidden = !wanted.command || !wanted.command.length;
      find(".fl-command code").textContent = (wanted.command || []).map(quoted).join(" ");
      find(".fl-live").dataset.state = "empty";
      find(".fl-phase").textContent = wanted.hint || "";
      for (const name of Object.keys(formats)) find(`[data-number="${name}"]`).textContent = "–";
    }
    schedule(0);
  }

  function quoted(part) {
    return /^[\w@%+=:,./-]+$/.test(part) ? part : `'${part.replaceAll("'", `'"'"'`)}'`;
  }

  function schedule(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(poll, milliseconds);
  }

  async function poll() {
    if (!element.isConnected) return; // The page was taken apart: this view is gone for good.
    const visible = document.visibilityState === "visible" && loss.offsetParent !== null;
    if (!target.run || !visible) return schedule(1000);
    const asked = generation;
    let answer;
    try {
      answer = await server.tail({ run: target.run, secret: target.secret, offset, samples: sampleCount });
    } catch {
      return schedule(2000); // The server is restarting or busy; the run directory keeps everything meanwhile.
    }
    if (asked !== generation) return schedule(0);
    if (!answer || answer.error) {
      find(".fl-phase").textContent = answer ? answer.error : "";
      return schedule(3000);
    }
    const steps = answer.columns.step;
    const goesBack = offset > 0 && steps.length && curve.step.length && steps[0] <= curve.step[curve.step.length - 1];
    if (goesBack || curve.step.length + steps.length > MAX_DRAWN) {
      // A resume repeats steps, or the curve has grown long: take the tidied history from the start.
      forget();
      return schedule(0);
    }
    if (sampleCount === 0) list.replaceChildren();
    offset = answer.offset;
    const marked = phase && phase.since_step;
    if (answer.phase) phase = answer.phase;
    const began = performance.now();
    append(answer.columns);
    const active = ["waiting", "starting", "running", "stopping"].includes(answer.status.state);
    updates += 1;
    if (!active || updates % SMALL_CHARTS_EVERY === 0) extendSmallCharts();
    if (steps.length) drawing = 0.7 * drawing + 0.3 * (performance.now() - began);
    if (drawn && phase && (phase.since_step ?? null) !== (marked ?? null)) {
      const { shapes, annotations } = lossLayout(colours());
      Plotly.relayout(loss, { shapes, annotations });
    }
    sampleCount = answer.samples_total;
    addSamples(answer.samples);
    showStatus(answer.status);
    if (drawn && baselines === null) fetchBaselines().catch(() => {}); // Asked again with the next answer.
    const pause = active ? pauseUntil(answer.look) : 3000;
    document.dispatchEvent(new CustomEvent("fundamentallm-look", { detail: { status: answer.look, next: pause } }));
    schedule(pause);
  }

  // Milliseconds; never past the end of learning, and short while the state is about to change.
  function pauseUntil(look) {
    const left = typeof look.remaining_seconds === "number" ? 1000 * look.remaining_seconds : Infinity;
    const longest = look.state === "running" ? Math.min(LONGEST_PAUSE, left) : SHORTEST_PAUSE;
    return Math.max(SHORTEST_PAUSE, Math.min(longest, PAUSE_PER_DRAWING * drawing));
  }

  switches.smooth.addEventListener("change", () => drawn && draw());
  switches.log.addEventListener("change", () => {
    if (drawn) Plotly.relayout(loss, { "yaxis.type": switches.log.checked ? "log" : "linear", "yaxis.autorange": true });
  });
  switches.baselines.addEventListener("change", () => {
    if (drawn) Plotly.relayout(loss, { shapes: lossLayout(colours()).shapes });
  });
  switches.earlier.addEventListener("change", () => drawn && drawEarlier());
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && schedule(0));
  new MutationObserver(() => drawn && draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  const sizes = new ResizeObserver(() => {
    const width = find(".fl-live").offsetWidth;
    if (width) find(".fl-live").classList.toggle("fl-wide", width >= 960);
    if (drawn && loss.offsetParent !== null) for (const chart of [loss, rate, speed]) Plotly.Plots.resize(chart);
  });
  for (const part of [element, loss, rate]) sizes.observe(part);
  watch("value", retarget);
  retarget();
})();
