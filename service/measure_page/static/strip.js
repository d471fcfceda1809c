// The slices of the present measurement, one dot each; a line at their median.

const SHOWN = 240;

/** Draws on `canvas`; colours come from the page's style. */
export class Strip {
  constructor(canvas) {
    Object.assign(this, { canvas, slices: [], waiting: false });
    new ResizeObserver(() => this.ask()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.ask());
  }

  clear() {
    this.slices = [];
    this.ask();
  }

  add(slices) {
    this.slices = [...this.slices, ...slices].slice(-SHOWN);
    this.ask();
  }

  /** Of the quiet slices shown, in ms; null without any. */
  get median() {
    const quiet = this.slices.filter(([, quiet]) => quiet).map(([ms]) => ms);
    return quiet.length ? quiet.sort((a, b) => a - b)[Math.floor(quiet.length / 2)] : null;
  }

  ask() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { canvas, slices, median } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio;
    canvas.width = width * scale;
    canvas.height = height * scale;
    if (!slices.length) return;
    const style = getComputedStyle(canvas);
    const [accent, busy, line] = ["--accent", "--busy", "--line"].map((name) =>
      style.getPropertyValue(name),
    );
    const middle = median ?? slices[0][0];
    const most = Math.max(...slices.map(([ms]) => Math.abs(ms / middle - 1)));
    const reach = Math.min(0.5, Math.max(0.02, most)); // ±2 % at least, ±50 % at most
    const y = (ms) => {
      const off = Math.max(-1, Math.min(1, (ms / middle - 1) / reach));
      return height / 2 - off * (height / 2 - 8);
    };
    const step = (width - 24) / Math.max(slices.length - 1, 40);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = line;
    pen.fillRect(0, height / 2, width, 1);
    slices.forEach(([ms, quiet], i) => {
      pen.beginPath();
      pen.arc(12 + i * step, y(ms), quiet ? 2.5 : 2.25, 0, 7);
      pen.fillStyle = accent;
      pen.strokeStyle = busy;
      if (quiet) pen.fill();
      else pen.stroke();
    });
  }
}
