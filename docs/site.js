// What scrolls can be reached with the keyboard, and what is spoken has a name.
document$.subscribe(() => {
  document.querySelectorAll(".md-typeset pre > code, .md-typeset table:not([class]), .md-typeset p:has(> img)").forEach(each => { each.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav").forEach((each, number) => each.setAttribute("aria-label", `Code block ${number + 1}`));
  document.querySelectorAll("nav.md-nav[aria-labelledby]").forEach((each, number) => {
    each.removeAttribute("aria-labelledby");
    each.setAttribute("aria-label", `Navigation, part ${number + 1}`);
  });
  document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
});
