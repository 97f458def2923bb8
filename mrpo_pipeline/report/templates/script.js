(function () {
  "use strict";
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var kinds = ["auto", "light", "dark"];
  function kept() { try { return localStorage.getItem("mrpo-theme"); } catch (error) { return null; } }
  function keep(kind) { try { localStorage.setItem("mrpo-theme", kind); } catch (error) { /* a file's page may keep nothing */ } }
  function wear(kind) {
    if (kind === "light" || kind === "dark") { root.setAttribute("data-theme", kind); } else { root.removeAttribute("data-theme"); kind = "auto"; }
    button.lastElementChild.textContent = kind;
    button.setAttribute("aria-label", "Colours: " + (kind === "auto" ? "as the system has them" : kind));
    return kind;
  }
  var worn = wear(kept());
  button.hidden = false;
  button.addEventListener("click", function () { worn = wear(kinds[(kinds.indexOf(worn) + 1) % 3]); keep(worn); });

  document.querySelectorAll(".legend").forEach(function (legend) {
    var section = legend.closest("section");
    var buttons = Array.prototype.slice.call(legend.querySelectorAll("button"));
    function pick(series) {
      section.classList.toggle("picked", series !== null);
      section.querySelectorAll('svg.plot [class^="series-"]').forEach(function (group) {
        group.classList.toggle("lit", group.classList.contains("series-" + series));
      });
    }
    function held() { var on = buttons.filter(function (one) { return one.getAttribute("aria-pressed") === "true"; })[0]; return on ? on.dataset.series : null; }
    buttons.forEach(function (one) {
      one.addEventListener("mouseenter", function () { pick(one.dataset.series); });
      one.addEventListener("mouseleave", function () { pick(held()); });
      one.addEventListener("click", function () {
        var on = one.getAttribute("aria-pressed") === "true";
        buttons.forEach(function (other) { other.setAttribute("aria-pressed", "false"); });
        one.setAttribute("aria-pressed", on ? "false" : "true");
        pick(held());
      });
    });
  });

  var opened = [];
  addEventListener("beforeprint", function () { document.querySelectorAll("details[data-print]:not([open])").forEach(function (part) { part.open = true; opened.push(part); }); });
  addEventListener("afterprint", function () { opened.forEach(function (part) { part.open = false; }); opened = []; });
})();
