(function () {
  "use strict";
  var root = document.documentElement, button = document.getElementById("theme"), kinds = ["auto", "light", "dark"];
  function kept() { try { return localStorage.getItem("mrpo-theme"); } catch (error) { return null; } }
  function keep(kind) { try { localStorage.setItem("mrpo-theme", kind); } catch (error) { /* pages of files may keep nothing */ } }
  function apply(kind) {
    if (kinds.indexOf(kind) < 1) { kind = "auto"; root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", kind); }
    button.lastElementChild.textContent = kind;
    button.setAttribute("aria-label", "Colours: " + (kind === "auto" ? "as the system has them" : kind));
    return kind;
  }
  var current = apply(kept());
  button.hidden = false;
  button.addEventListener("click", function () { current = apply(kinds[(kinds.indexOf(current) + 1) % 3]); keep(current); });

  // Lines and marks are known by their colour, which is one method's or reference's.
  document.querySelectorAll(".legend").forEach(function (legend) {
    var buttons = Array.prototype.slice.call(legend.querySelectorAll("button"));
    function show(colour) {
      legend.closest("section").querySelectorAll('svg.plot [style*="var(--method-"], svg.plot [style*="var(--reference-"]').forEach(function (part) {
        part.classList.toggle("dim", colour !== null && part.getAttribute("style").indexOf("var(--" + colour + ")") < 0);
      });
    }
    function pressed() { var on = buttons.filter(function (one) { return one.getAttribute("aria-pressed") === "true"; })[0]; return on ? on.dataset.colour : null; }
    buttons.forEach(function (one) {
      one.addEventListener("mouseenter", function () { show(one.dataset.colour); });
      one.addEventListener("mouseleave", function () { show(pressed()); });
      one.addEventListener("click", function () {
        var on = one.getAttribute("aria-pressed") === "true";
        buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === one && !on)); });
        show(pressed());
      });
    });
  });

  // On paper nothing can be unfolded.
  var opened = [];
  addEventListener("beforeprint", function () { document.querySelectorAll("details:not([open])").forEach(function (part) { part.open = true; opened.push(part); }); });
  addEventListener("afterprint", function () { opened.forEach(function (part) { part.open = false; }); opened = []; });
})();
