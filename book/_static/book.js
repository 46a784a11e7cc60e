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

/* What scrolls sideways shows where there is more, and can be reached and scrolled with the keyboard. */
(() => {
  const boxes = ".pst-scrollable-table-container, .cell_output .output, div.math mjx-container";

  const look = box => {
    const hidden = box.scrollWidth - box.clientWidth;
    const scrolls = hidden > 1 && ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    box.classList.toggle("more-before", scrolls && box.scrollLeft > 1);
    box.classList.toggle("more-after", scrolls && box.scrollLeft < hidden - 1);
    if (scrolls) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  };

  const lookAtAll = () => document.querySelectorAll(boxes).forEach(look);
  addEventListener("load", async () => {
    // MathJax has drawn every formula then, if the page has any
    await window.MathJax?.startup?.promise;
    lookAtAll();
  });
  addEventListener("resize", () => requestAnimationFrame(lookAtAll));
  addEventListener("toggle", lookAtAll, true);
  addEventListener("scroll", ({target}) => target.matches?.(boxes) && look(target), true);
})();
