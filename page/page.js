// What Gradio's components lack: pasting or dropping a picture anywhere on the page, taking files
// that the browser does not know, and a divider that the keyboard moves.
(() => {
  // --- taking a picture ---

  const isPicture = (file) => file.type.startsWith("image/");

  // Gradio refuses a file that the browser does not take for a picture, such as HEIC or a clip. The
  // server can tell what it is and what to do, so it is sent as a picture.
  const transferOf = (file) => {
    const transfer = new DataTransfer();
    const options = { type: "image/unknown" };
    transfer.items.add(isPicture(file) ? file : new File([file], file.name, options));
    return transfer;
  };

  const take = (file, attempts = 20) => {
    const input = document.querySelector("#picture input[type=file]");
    if (input) {
      input.files = transferOf(file).files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (attempts) {
      // The input comes back once the earlier picture has been removed
      document.querySelector("#picture button[aria-label='Remove Image']")?.click();
      setTimeout(() => take(file, attempts - 1), 50);
    }
  };

  // These see what is chosen or dropped before Gradio does
  document.addEventListener(
    "change",
    (event) => {
      if (!event.target.matches("#picture input[type=file]")) return;
      const file = event.target.files[0];
      if (!file || isPicture(file)) return;
      event.stopImmediatePropagation();
      take(file);
    },
    true,
  );
  document.addEventListener(
    "drop",
    (event) => {
      const file = event.dataTransfer?.files[0];
      if (!file || isPicture(file) || !event.target.closest("#picture")) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const options = { dataTransfer: transferOf(file), bubbles: true, cancelable: true };
      event.target.dispatchEvent(new DragEvent("drop", options));
    },
    true,
  );

  const takeInstead = (event, file) => {
    if (!file) return;
    event.preventDefault();
    take(file);
  };

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    takeInstead(event, files.find(isPicture) ?? files[0]);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // The control for the picture handles what is dropped onto it
    if (!event.defaultPrevented) takeInstead(event, event.dataTransfer?.files[0]);
  });

  // --- the divider between bicubic and enlarged ---

  // A mouse event's options at the middle of an element
  const middle = (element) => {
    const box = element.getBoundingClientRect();
    return {
      clientX: box.left + box.width / 2,
      clientY: box.top + box.height / 2,
      bubbles: true,
      cancelable: true,
      view: window,
    };
  };

  // Where the divider is, in percent from the left
  const position = (divider) => {
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
    const options = { ...middle(image.parentElement), deltaY: -Math.sign(steps) };
    for (let step = 0; step < Math.abs(steps); step++)
      image.dispatchEvent(new WheelEvent("wheel", options));
  };

  const MOVES = {
    // Fractions of the width
    ArrowLeft: -0.05,
    ArrowDown: -0.05,
    ArrowRight: 0.05,
    ArrowUp: 0.05,
    Home: -2,
    End: 2,
  };
  const ZOOMS = { "+": 5, "=": 5, "-": -5, 0: -100 }; // turns of the wheel

  const onKey = (event) => {
    const divider = event.currentTarget;
    if (event.key in MOVES) {
      const width = divider.parentElement.getBoundingClientRect().width;
      move(divider, MOVES[event.key] * width);
    } else if (event.key in ZOOMS) {
      zoom(divider, ZOOMS[event.key]);
    } else {
      return;
    }
    event.preventDefault();
  };

  const addKeyboard = (divider) => {
    const attributes = {
      role: "slider",
      tabindex: 0,
      "aria-label": "Divider between bicubic and enlarged",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
    };
    for (const [name, value] of Object.entries(attributes)) divider.setAttribute(name, value);
    const report = () => divider.setAttribute("aria-valuenow", position(divider));
    report();
    new MutationObserver(report).observe(divider, { attributeFilter: ["style"] });
    divider.addEventListener("keydown", onKey);
  };

  // --- everything, whenever Gradio has changed the page ---

  const makeAccessible = () => {
    const names = ["Enlarged with bicubic interpolation", "Enlarged with the generator"];
    document.querySelectorAll("#comparison img").forEach((image, index) => {
      image.alt ||= names[index] ?? "";
    });
    for (const image of document.querySelectorAll("#examples button img"))
      image.alt ||= `Example: ${image.src.split("/").pop().split(".")[0]}`;
    const dividers = "#comparison [data-testid=slider]:not([tabindex])";
    document.querySelectorAll(dividers).forEach(addKeyboard);
  };
  new MutationObserver(makeAccessible).observe(document.documentElement, {
    childList: true,
    subtree: true,
  });
})();
