whenever((value) => {
  root.replaceChildren(
    ...(value.items || []).map((item) => {
      const box = make("div", "fl-notice fl-notice-" + (item.kind === "error" ? "error" : "warning"), item.text);
      box.setAttribute("role", item.kind === "error" ? "alert" : "status");
      return box;
    }),
  );
});
