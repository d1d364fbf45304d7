// After the script of a panel whose "select" tells its handlers that another run is shown, or that this one got a model or
// changed its state. Not before the panel is in sight: a handler's answer takes the page longer than drawing a chart.
(() => {
  let told;
  const tell = () => {
    const shown = document.documentElement.dataset.run; // set by the header
    if (shown === undefined || shown === told || !element.isConnected || element.offsetParent === null) return;
    told = shown;
    trigger("select");
  };
  document.addEventListener("fundamentallm-run", tell);
  new ResizeObserver(tell).observe(element);
  tell();
})();
