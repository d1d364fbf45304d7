// The columns are built once per set of names; a step of the stream changes four text nodes.
let columns = [];
const build = (names) => {
  columns = names.map((name) => {
    const box = make("section", "fl-column");
    const title = make("h3", "", name);
    const how = make("p", "fl-note");
    const body = make("pre", "fl-written");
    body.tabIndex = 0;
    body.setAttribute("aria-label", name);
    const parts = {
      prompt: make("span", "fl-prompt"),
      common: make("span", "fl-common"),
      mark: make("span", "fl-mark"),
      rest: make("span", "fl-rest"),
    };
    body.append(parts.prompt, parts.common, parts.mark, parts.rest);
    const foot = make("footer", "fl-note");
    const parting = make("span", "fl-parting");
    const speed = make("span", "fl-speed");
    const copied = make("button", "fl-copied");
    copied.type = "button";
    copied.addEventListener("click", () => {
      underlined = !underlined;
      underline();
    });
    foot.append(parting, speed, copied);
    box.append(title, how, body, foot);
    return { name, box, how, body, parting, speed, copied, spans: [], ...parts };
  });
  root.replaceChildren(...columns.map((column) => column.box));
};
// What was copied is underlined by the browser's own highlights: the text nodes stay as they are.
let underlined = false;
const underline = () => {
  const ranges = underlined ? columns.flatMap((column) => column.spans.flatMap(([start, end]) => pieces(column, start, end))) : [];
  if (window.Highlight) CSS.highlights.set("fl-copied", new Highlight(...ranges));
  for (const column of columns) column.copied.setAttribute("aria-pressed", String(underlined));
};
// The written text is two nodes, before and after the place where the columns part.
const pieces = (column, start, end) => {
  const result = [];
  let offset = 0;
  for (const node of [column.common.firstChild, column.rest.firstChild]) {
    if (!node) continue;
    const [from, to] = [Math.max(start - offset, 0), Math.min(end - offset, node.length)];
    if (from < to) {
      const range = new Range();
      range.setStart(node, from);
      range.setEnd(node, to);
      result.push(range);
    }
    offset += node.length;
  }
  return result;
};
// The server counts characters, a text node UTF-16 units.
const unitSpans = (text, spans) => {
  if (!/[\uD800-\uDBFF]/.test(text)) return spans;
  const starts = [0];
  for (const character of text) starts.push(starts[starts.length - 1] + character.length);
  return spans.map(([start, end]) => [starts[start], starts[end]]);
};
const set = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
whenever((value) => {
  const given = value.columns || [];
  if (given.map((item) => item.name).join() !== columns.map((column) => column.name).join()) build(given.map((item) => item.name));
  root.dataset.state = value.state || "empty";
  given.forEach((item, index) => {
    const column = columns[index];
    const atEnd = column.body.scrollTop + column.body.clientHeight >= column.body.scrollHeight - 24;
    // The first column is greedy, the one that the others are measured against.
    const parted = index > 0 && typeof item.parts_at === "number";
    const cut = parted ? unitSpans(item.text, [[item.parts_at, item.parts_at]])[0][0] : index > 0 ? item.text.length : 0;
    set(column.how, item.how);
    set(column.prompt, value.prompt || "");
    set(column.common, item.text.slice(0, cut));
    set(column.rest, item.text.slice(cut));
    column.mark.classList.toggle("fl-mark-on", parted);
    column.mark.title = item.parting || "";
    column.body.classList.toggle("fl-blank", item.text !== "" && !item.text.trim());
    set(column.parting, item.parting || "");
    set(column.speed, item.speed || "");
    const copied = item.copied || {};
    set(column.copied, copied.note || "");
    column.copied.hidden = !copied.note;
    column.copied.disabled = !(copied.spans || []).length;
    column.copied.title = copied.source || "";
    column.spans = unitSpans(item.text, copied.spans || []);
    if (atEnd && value.state === "running") column.body.scrollTop = column.body.scrollHeight;
  });
  underline();
});
