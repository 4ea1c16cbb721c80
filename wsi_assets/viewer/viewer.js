"use strict";

const byId = (id) => document.getElementById(id);
const wanted = decodeURIComponent(location.pathname.split("/")[2] || "");
let viewer, slide, heatItem, current = -1, draw = () => {};

start().catch((error) => fail(error.message));

async function start() {
  const ids = await fetched("/api/slides");
  const id = wanted || ids[0];
  if (!id) throw new Error("There is no slide in the slide folder.");
  for (const one of ids) byId("slides").add(new Option(one, one, one === id, one === id));
  byId("slides").onchange = (event) => location.assign(`/slide/${encodeURIComponent(event.target.value)}`);
  byId("title").textContent = document.title = id;
  slide = await fetched(`/api/${encodeURIComponent(id)}`);
  viewer = OpenSeadragon({
    element: byId("slide"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "TOP_RIGHT",
    maxZoomPixelRatio: 4,
    gestureSettingsMouse: { clickToZoom: false },
    tileSources: {
      width: slide.width,
      height: slide.height,
      tileSize: slide.tile,
      tileOverlap: 1,
      getTileUrl: (level, x, y) => `/tiles/${encodeURIComponent(id)}/${level}/${x}_${y}.jpeg`,
    },
  });
  viewer.addHandler("open", () => {
    drawOver();
    showHeat(id, 0);
  });
  viewer.addHandler("open-failed", () => fail("The slide does not open."));
  byId("annotation").onchange = () => draw();
  byId("shown").onchange = byId("opacity").oninput = setOpacity;
  document.addEventListener("keydown", pressed);
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function fail(text) {
  byId("fault").hidden = false;
  byId("fault").textContent = text;
}

function showHeat(id, number) {
  byId("heat").hidden = slide.heat.length === 0;
  if (!slide.heat.length) return;
  byId("which").hidden = slide.heat.length < 2;
  byId("heats").replaceChildren(
    ...slide.heat.map((one, index) => new Option(one.name, index, index === number, index === number)));
  byId("heats").onchange = (event) => showHeat(id, Number(event.target.value));
  if (heatItem) viewer.world.removeItem(heatItem);
  viewer.addTiledImage({
    tileSource: { type: "image", url: `/heat/${encodeURIComponent(id)}/${number}`, buildPyramid: false },
    x: 0, y: 0, width: 1,
    success: (event) => {
      heatItem = event.item;
      setOpacity();
    },
  });
  current = -1;
  byId("detections").replaceChildren(...slide.heat[number].detections.map(([probability, x, y], index) => {
    const button = document.createElement("button");
    button.append(`${index + 1}. ${probability.toFixed(3)}`, ` (${Math.round(x)}, ${Math.round(y)})`);
    button.onclick = () => goTo(index);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  if (!slide.heat[number].detections.length) byId("detections").textContent = "none";
}

function detections() {
  return slide.heat.length ? slide.heat[Number(byId("heats").value || 0)].detections : [];
}

function setOpacity() {
  heatItem?.setOpacity(byId("shown").checked ? byId("opacity").value / 100 : 0);
  draw();
}

function goTo(index) {
  const all = detections();
  if (!all.length) return;
  current = (index + all.length) % all.length;
  [...byId("detections").querySelectorAll("button")].forEach((button, number) => {
    button.setAttribute("aria-current", String(number === current));
    if (number === current) button.scrollIntoView({ block: "nearest" });
  });
  const [, x, y] = all[current];
  // Half a millimeter around the detection, or 1,000 pixels if the pixel size is not known.
  const side = Math.min(slide.mpp ? 500 / slide.mpp : 1000, Math.max(slide.width, slide.height) / 3);
  viewer.viewport.fitBounds(viewer.world.getItemAt(0).imageToViewportRectangle(
    x - side / 2, y - side / 2, side, side));
}

function pressed(event) {
  if (event.target.matches("select, input[type=range]") || event.ctrlKey || event.metaKey) return;
  const does = {
    a: () => byId("annotation").click(),
    h: () => byId("shown").click(),
    n: () => goTo(current + 1),
    p: () => goTo(current < 0 ? -1 : current - 1),
    0: () => viewer.viewport.goHome(),
  }[event.key.toLowerCase()];
  does?.();
}

// Annotations, detections and the scale bar are drawn with every frame, on a canvas over the slide.
function drawOver() {
  const canvas = document.createElement("canvas");
  canvas.id = "over";
  Object.assign(canvas.style, { position: "absolute", inset: 0, pointerEvents: "none" });
  viewer.canvas.append(canvas);
  const paths = (rings) => rings.map((ring) => {
    const path = new Path2D();
    ring.forEach(([x, y], number) => (number ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
    return path;
  });
  const areas = { "#56B4E9": paths(slide.excluded), "#D55E00": paths(slide.tumor), "#CC79A7": paths(slide.ignored) };
  draw = () => {
    const ratio = window.devicePixelRatio || 1, width = viewer.canvas.clientWidth, height = viewer.canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const image = viewer.world.getItemAt(0);
    const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const one = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
    const zoom = (one.x - origin.x) / 1000, pen = canvas.getContext("2d");
    pen.setTransform(zoom * ratio, 0, 0, zoom * ratio, origin.x * ratio, origin.y * ratio);
    if (byId("annotation").checked) {
      for (const [color, rings] of Object.entries(areas)) stroke(pen, rings, color, zoom);
    }
    if (byId("shown").checked) {
      const rings = detections().map(([, x, y]) => {
        const ring = new Path2D();
        ring.arc(x, y, 12 / zoom, 0, 2 * Math.PI);
        return ring;
      });
      stroke(pen, rings, "#ffffff", zoom);
    }
    drawScale(zoom);
  };
  viewer.addHandler("update-viewport", () => draw());
  viewer.addHandler("resize", () => draw());
  draw();
}

function stroke(pen, paths, color, zoom) {
  for (const [style, width] of [["#000a", 4], [color, 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width / zoom;
    paths.forEach((path) => pen.stroke(path));
  }
}

function drawScale(zoom) {
  if (!slide.mpp) return;
  const most = 160 / zoom * slide.mpp, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((value) => value <= most);
  const bar = byId("scale");
  bar.hidden = false;
  bar.style.width = `${length / slide.mpp * zoom}px`;
  bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
}
