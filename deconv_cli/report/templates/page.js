"use strict";
(() => {
  const largest = 32;

  // Views of the same part, which zoom and move together; gives what zooms them.
  const link = (views) => {
    // The part of every picture that is seen: its left upper corner, as a share of the whole, and how much it is enlarged.
    const seen = { scale: 1, x: 0, y: 0 };

    const show = () => {
      const room = 1 - 1 / seen.scale;
      seen.x = Math.min(Math.max(seen.x, 0), room);
      seen.y = Math.min(Math.max(seen.y, 0), room);
      for (const view of views) {
        const shift = (part) => `${(-100 * part * seen.scale).toFixed(4)}%`;
        view.firstElementChild.style.transform = `translate(${shift(seen.x)}, ${shift(seen.y)}) scale(${seen.scale})`;
        view.classList.toggle("near", seen.scale > 1);
      }
    };

    // Zooms so that what is under a point of a view, given as shares of its size, stays there.
    const zoom = (factor, across = 0.5, down = 0.5) => {
      const scale = Math.min(Math.max(seen.scale * factor, 1), largest);
      seen.x += across / seen.scale - across / scale;
      seen.y += down / seen.scale - down / scale;
      seen.scale = scale;
      show();
    };

    const place = (view, event) => {
      const box = view.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };

    for (const view of views) {
      let from = null;
      view.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || seen.scale === 1) return;
        from = { across: event.clientX, down: event.clientY, x: seen.x, y: seen.y };
        view.setPointerCapture(event.pointerId);
      });
      view.addEventListener("pointermove", (event) => {
        if (!from) return;
        const box = view.getBoundingClientRect();
        seen.x = from.x - (event.clientX - from.across) / box.width / seen.scale;
        seen.y = from.y - (event.clientY - from.down) / box.height / seen.scale;
        show();
      });
      for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => { from = null; });
      view.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 0.5 : 2, ...place(view, event)));
      view.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoom(Math.exp(-event.deltaY / 300), ...place(view, event));
      }, { passive: false });
      view.addEventListener("keydown", (event) => {
        const step = 0.1 / seen.scale;
        const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
        if (event.key === "+" || event.key === "=") zoom(1.5);
        else if (event.key === "-") zoom(1 / 1.5);
        else if (event.key === "0") zoom(1 / largest);
        else if (moves[event.key] && seen.scale > 1) {
          seen.x += moves[event.key][0];
          seen.y += moves[event.key][1];
          show();
        } else return;
        event.preventDefault();
      });
    }
    show();
    return zoom;
  };

  // What is compared in part is no part of what the other pictures show.
  const comparisons = [...document.querySelectorAll(".comparison")];
  const all = [...document.querySelectorAll(".view")];
  const apart = comparisons.filter((comparison) => !comparison.matches(".whole"));
  const groups = apart.map((comparison) => all.filter((view) => comparison.contains(view)));
  const zooms = [...groups, all.filter((view) => !groups.flat().includes(view))].map(link);

  // Lays after under before, with a line between them that is dragged; without a script they stand side by side.
  const join = (comparison) => {
    const panes = comparison.querySelector(".panes"), cut = comparison.querySelector(".cut");
    const image = panes.querySelector("img");
    let isDragged = false;
    const show = () => comparison.style.setProperty("--cut", `${cut.value}%`);
    const follow = (event) => {
      const box = panes.getBoundingClientRect();
      cut.value = 100 * (event.clientX - box.left) / box.width;
      show();
    };
    panes.addEventListener("pointerdown", (event) => {
      const taken = event.target.closest(".divider, .view:not(.near)");
      if (event.button !== 0 || !taken) return;
      isDragged = true;
      taken.setPointerCapture(event.pointerId);
      follow(event);
    });
    panes.addEventListener("pointermove", (event) => { if (isDragged) follow(event); });
    for (const end of ["pointerup", "pointercancel"]) panes.addEventListener(end, () => { isDragged = false; });
    cut.addEventListener("input", show);
    comparison.style.setProperty("--ratio", image.getAttribute("width") / image.getAttribute("height"));
    comparison.classList.add("joined");
    show();
  };
  comparisons.forEach(join);

  const factors = { in: 1.5, out: 1 / 1.5, reset: 1 / largest };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zooms.forEach((zoom) => zoom(factors[button.dataset.zoom])));
  }
  const box = document.querySelector(".hatch");
  if (box) box.addEventListener("change", () => document.body.classList.toggle("plain", !box.checked));

  // Copies from a text area, since a page from a file may not use the clipboard itself.
  for (const button of document.querySelectorAll("[data-copy]")) {
    const code = button.parentElement.querySelector("code"), label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", () => {
      const text = document.createElement("textarea");
      text.value = code.textContent.trim();
      document.body.append(text);
      text.select();
      button.textContent = document.execCommand("copy") ? "Copied" : "Not copied";
      text.remove();
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }

  // Shows the plane of all stacks that the slider stands at, and the lines of it in the cuts.
  const slider = document.getElementById("plane");
  if (slider) {
    const planes = slider.dataset.planes.split(" "), depths = slider.dataset.depths.split(" ");
    const show = () => {
      const at = Number(slider.value);
      document.getElementById("plane-number").textContent = Number(planes[at]) + 1;
      slider.setAttribute("aria-valuetext", `plane ${Number(planes[at]) + 1}`);
      for (const image of document.querySelectorAll(".planes")) {
        image.setAttribute("y", -at * image.getAttribute("height") / planes.length);
      }
      for (const line of document.querySelectorAll(".plane-across")) line.setAttribute("transform", `translate(${depths[at]} 0)`);
      for (const line of document.querySelectorAll(".plane-down")) line.setAttribute("transform", `translate(0 ${depths[at]})`);
    };
    slider.addEventListener("input", show);
    show();
  }
})();
