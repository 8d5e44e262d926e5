// What Gradio's components lack: pasting a picture anywhere, and a divider that the keyboard moves.
(() => {
  document.addEventListener("paste", (event) => {
    const picture = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    const input = document.querySelector("#picture input[type=file]");
    if (!picture || !input) return;
    const files = new DataTransfer();
    files.items.add(picture);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    event.preventDefault();
  });

  const middle = (element) => {
    const box = element.getBoundingClientRect();
    return { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true, cancelable: true, view: window };
  };

  const share = (divider) => {
    const box = divider.parentElement.getBoundingClientRect();
    const handle = divider.getBoundingClientRect();
    return Math.round((100 * (handle.left + handle.width / 2 - box.left)) / box.width);
  };

  const move = (divider, pixels) => {
    const from = middle(divider);
    const to = { ...from, clientX: from.clientX + pixels };
    divider.dispatchEvent(new MouseEvent("mousedown", from));
    window.dispatchEvent(new MouseEvent("mousemove", to));
    window.dispatchEvent(new MouseEvent("mouseup", to));
  };

  const zoom = (divider, steps) => {
    const image = divider.parentElement.querySelector("img");
    for (let step = 0; step < Math.abs(steps); step++)
      image.dispatchEvent(new WheelEvent("wheel", { ...middle(image.parentElement), deltaY: -Math.sign(steps) }));
  };

  const makeReachable = () => {
    for (const divider of document.querySelectorAll("#comparison [data-testid=slider]:not([tabindex])")) {
      const describe = () => divider.setAttribute("aria-valuenow", share(divider));
      for (const [name, value] of Object.entries({
        role: "slider", tabindex: 0, "aria-label": "Divider between bicubic and enlarged", "aria-valuemin": 0, "aria-valuemax": 100,
      })) divider.setAttribute(name, value);
      describe();
      new MutationObserver(describe).observe(divider, { attributes: true, attributeFilter: ["style"] });
      divider.addEventListener("keydown", (event) => {
        const width = divider.parentElement.getBoundingClientRect().width;
        const pixels = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -2, End: 2 }[event.key] * width;
        const steps = { "+": 5, "=": 5, "-": -5, 0: -100 }[event.key];
        if (pixels) move(divider, pixels);
        else if (steps) zoom(divider, steps);
        else return;
        event.preventDefault();
      });
    }
  };
  new MutationObserver(makeReachable).observe(document.documentElement, { childList: true, subtree: true });
})();
