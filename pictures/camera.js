const LONGEST = 1024; // pixels of the longer side that are sent
const WHY = { // a camera's answers, in words
  NotAllowedError: "The camera was refused. Allow it for this page",
  NotFoundError: "There is no camera here. Plug one in",
  NotReadableError: "Another program holds the camera. Close it",
};
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const render = ({ model, el }) => {
  const ours = { type: "button", "data-lm-suppress-shortcuts": "true" }; // Jupyter's own keys let it be
  const choose = make("button", ours, "Choose a picture");
  const camera = make("button", ours, "Camera");
  const input = make("input", { type: "file", accept: "image/*", hidden: "" });
  const video = make("video", { playsinline: "", hidden: "", "aria-label": "What the camera sees" });
  const preview = make("img", { alt: "Your picture", hidden: "" });
  const said = make("p", { "aria-live": "polite" });
  video.muted = true;
  const say = (text) => { said.textContent = text; };

  const show = () => {
    const jpeg = model.get("jpeg");
    if (!jpeg?.byteLength) return say("It goes to this page's kernel, and nowhere else.");
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(new Blob([jpeg], { type: "image/jpeg" }));
    preview.hidden = false;
    say("Here it is. Run the next cell.");
  };
  const send = async (source, width, height) => {
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    const [w, h] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = make("canvas", { width: w, height: h });
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "#fff"; // what is transparent becomes white
    pen.fillRect(0, 0, w, h);
    pen.drawImage(source, 0, 0, w, h);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    model.set("jpeg", new DataView(await blob.arrayBuffer()));
    model.save_changes();
    show();
  };

  let stream = null;
  let wish = 0; // counts what was asked for: a camera that comes after the next wish is not wanted
  const close = (one) => one?.getTracks().forEach((track) => track.stop());
  const stop = () => {
    wish += 1;
    close(stream);
    stream = null;
    video.hidden = true;
    preview.hidden = !preview.src;
    camera.textContent = "Camera";
  };
  const start = async () => {
    stop();
    const asked = wish;
    if (!navigator.mediaDevices) {
      return say("Cameras need a page from https or localhost. Choose a picture instead.");
    }
    say("Waiting for the camera. The browser may ask you.");
    try {
      const came = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
      if (asked !== wish) return close(came);
      stream = video.srcObject = came;
      await video.play();
      if (asked !== wish) return;
      video.hidden = false;
      preview.hidden = true;
      camera.textContent = "Take the picture";
      say("Look, then take the picture.");
    } catch (error) {
      if (asked !== wish) return;
      stop();
      say(`${WHY[error.name] ?? `The camera failed (${error.name}). Try again`}, or choose a picture.`);
    }
  };
  const take = async () => {
    const sent = send(video, video.videoWidth, video.videoHeight);
    stop();
    await sent;
  };
  const read = async () => {
    const [file] = input.files;
    if (!file) return;
    stop();
    const picture = make("img", { src: URL.createObjectURL(file) }); // upright, as its EXIF tag says
    input.value = ""; // so that the same file can be chosen again
    try {
      await picture.decode();
      await send(picture, picture.naturalWidth, picture.naturalHeight);
    } catch {
      say(`${file.name} is no picture that this browser can read. Choose another.`);
    }
    URL.revokeObjectURL(picture.src);
  };

  choose.addEventListener("click", () => input.click());
  input.addEventListener("change", read);
  camera.addEventListener("click", () => (stream ? take() : start()));
  const buttons = make("div", { class: "pc-buttons" }, choose, camera, input);
  el.append(make("div", { class: "vit-camera", role: "group", "aria-label": "Your photograph" },
    buttons, video, preview, said));
  show();
  return stop; // called when the figure goes
};
export default { render };
