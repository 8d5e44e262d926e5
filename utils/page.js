// What Gradio's components lack: pasting or dropping a picture anywhere, and a divider that the keyboard moves.
(() => {
  const take = (file, attempts = 20) => {
    const input = document.querySelector("#picture input[type=file]");
    if (input) {
      const files = new DataTransfer();
      files.items.add(file);
      input.files = files.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (attempts) {
      document.querySelector("#picture button[aria-label='Remove Image']")?.click(); // the one that is there
      setTimeout(() => take(file, attempts - 1), 50);
    }
  };
  const takeOnly = (event, file) => {
    if (!file) return;
    event.preventDefault();
    take(file);
  };
  document.addEventListener("paste", (event) =>
    takeOnly(event, [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"))));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.defaultPrevented) takeOnly(event, event.dataTransfer?.files[0]); // outside the control, which has its own
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
    document.querySelectorAll("#comparison img").forEach((image, index) => {
      image.alt ||= ["Enlarged by bicubic interpolation", "Enlarged by the generator"][index] ?? "";
    });
    for (const image of document.querySelectorAll("#examples button img"))
      image.alt ||= `Example: ${image.src.split("/").pop().split(".")[0]}`;
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
