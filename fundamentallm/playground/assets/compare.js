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
    foot.append(parting, speed);
    box.append(title, how, body, foot);
    return { name, box, how, body, parting, speed, ...parts };
  });
  root.replaceChildren(...columns.map((column) => column.box));
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
    const cut = parted ? item.parts_at : index > 0 ? item.text.length : 0;
    set(column.how, item.how);
    set(column.prompt, value.prompt || "");
    set(column.common, item.text.slice(0, cut));
    set(column.rest, item.text.slice(cut));
    column.mark.classList.toggle("fl-mark-on", parted);
    column.mark.title = item.parting || "";
    set(column.parting, item.parting || "");
    set(column.speed, item.speed || "");
    if (atEnd && value.state === "running") column.body.scrollTop = column.body.scrollHeight;
  });
});
