// A push: what is being done, what went wrong, or where the result is.
whenever((value) => {
  const parts = [];
  if (value.doing) {
    const line = make("div", "fl-progress");
    line.append(make("span", "fl-note", value.doing), make("progress", ""));
    line.setAttribute("role", "status");
    parts.push(line);
  }
  if (value.done) {
    const box = make("div", "fl-done");
    box.setAttribute("role", "status");
    box.append(make("p", "", value.done));
    if (/^https?:\/\//.test(value.url)) {
      const link = make("a", "", value.url);
      link.href = value.url;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      box.append(link);
    }
    parts.push(box);
  }
  if (value.error) {
    const box = make("div", "fl-notice fl-notice-error", value.error);
    box.setAttribute("role", "alert");
    parts.push(box);
  }
  if (value.empty) parts.push(make("p", "fl-note", value.empty));
  root.replaceChildren(...parts);
});
