/* On paper: everything unfolded, in the light theme. Both are put back afterwards. */
(() => {
  const opened = new Set();
  let theme = null;

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      opened.add(details);
    }
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
  });

  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    opened.clear();
    if (theme !== null) document.documentElement.dataset.theme = theme;
  });
})();
