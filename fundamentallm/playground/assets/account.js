// Whose the pushed model will be.
whenever((value) => {
  const parts = [];
  if (value.name) {
    const line = make("p", "");
    line.append("It will belong to ", make("b", "", value.name));
    parts.push(make("span", "fl-initial", value.name.slice(0, 1).toUpperCase()), line);
  }
  if (value.note) parts.push(make("p", "fl-note", value.note));
  if (value.error) {
    const box = make("div", "fl-notice fl-notice-error", value.error);
    box.setAttribute("role", "alert");
    parts.push(box);
  }
  root.replaceChildren(...parts);
});
