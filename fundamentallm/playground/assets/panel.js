// In front of every panel's script. Text reaches the page only through textContent.
const root = element.firstElementChild;
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
};
const tiles = (items) => {
  const list = make("dl", "fl-tiles");
  for (const item of items || []) {
    const tile = make("div", "fl-tile" + (item.strong ? " fl-tile-strong" : ""));
    tile.append(make("dt", "", item.label), make("dd", "", item.value));
    if (item.note) tile.append(make("dd", "fl-note", item.note));
    list.append(tile);
  }
  return list;
};
// Draws now and at every new value. What a stopped run had still sent when Stop was pressed comes too late.
let stopped;
const whenever = (render) => {
  const show = () => {
    const value = props.value || {};
    if (value.stopped) stopped = value.run;
    else if (value.run && value.run === stopped) return;
    render(value);
  };
  show();
  watch("value", show);
};
