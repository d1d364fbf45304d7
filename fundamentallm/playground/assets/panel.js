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
const whenever = (render) => {
  render(props.value || {});
  watch("value", () => render(props.value || {}));
};
