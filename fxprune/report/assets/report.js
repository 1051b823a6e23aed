"use strict";
// Draws the records in the page. One record: the report of a run. Several: a comparison first.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const COLOURS = ["--gated", "--third", "--fourth", "--fifth", "--bad"];
  const lineOf = (run) => {  // how a run is drawn in each chart; dots once all colours are taken
    const at = runs.indexOf(run);
    return { label: runs.length > 1 ? run.title : "fxprune", colour: COLOURS[at % COLOURS.length], dash: at < COLOURS.length ? undefined : [2, 3] };
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const redraw = [];
  const fit = (text, room) => {  // press a name of wide letters into its place
    if (text.getComputedTextLength() <= room) return;
    text.setAttribute("textLength", room);
    text.setAttribute("lengthAdjust", "spacingAndGlyphs");
  };

  // --- small helpers ------------------------------------------------------------------------
  function h(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "rect", "path", "text", "title", "line"].includes(tag) && attributes.ns !== "html";
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) if (key !== "ns") element.setAttribute(key, value);
    for (const child of children) element.append(child instanceof Node ? child : String(child));
    return element;
  }
  const UNITS = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const plain = (value, digits) => {  // a power of ten only where the number is as long
    const text = value.toPrecision(digits);
    return text.includes("e+") && Math.abs(value) < 1e9 ? Number(text).toFixed(0) : text;
  };
  const percent = (share, digits = 1) => share == null ? "–" : (100 * share).toFixed(digits) + "\u00a0%";  // not broken before the unit
  const short = (value) => {
    if (value == null) return "–";
    const [size, unit] = unitOf(value);
    return unit ? (Number(value.toPrecision(3)) / size).toPrecision(3) + " " + unit : String(value);
  };
  const unitOf = (value) => UNITS.find(([size]) => Number(value.toPrecision(3)) >= size) || [1, ""];
  const last = (list) => list[list.length - 1];
  const small = (value) => value == null ? "–" : value.toExponential(1).replace("-", "\u2212");  // a hyphen may be broken at
  const timed = (run) => {  // the latency that an export measured, as its table shows it
    const file = run.export && run.export.onnx, timing = file && file.timing;
    if (timing) return { share: timing[timing.binds].median, by: timing.command && `, by ${timing.command}`, ...timing[timing.binds] };
    if (file && file.dense) return { share: file.compact.latency / file.dense.latency, dense: file.dense.latency, compact: file.compact.latency };
    return run.latency ? { share: run.latency.compact / run.latency.dense, ...run.latency } : null;
  };
  const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
  const figure = (value, digits) => value == null ? "–" : plain(value, digits);
  const ms = (seconds) => seconds == null ? "–" : seconds < .9995 ? (1000 * seconds).toPrecision(3) + "\u00a0ms" : plain(seconds, 3) + "\u00a0s";

  function section(id, title, about) {
    const part = h("section", { id, "aria-labelledby": id + "-title" }, h("h2", { id: id + "-title" }, title));
    if (about) part.append(h("p", { class: "soft" }, about));
    main.append(part);
    return part;
  }
  function table(head, rows, texts = [0]) {
    const cell = (tag, value, column) => {
      const made = h(tag, texts.includes(column) ? { class: "text" } : {}, value);
      if (tag === "th") made.setAttribute("scope", "col");
      return made;
    };
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head.filter(Boolean).join(", ") },
      h("table", {},
        h("thead", {}, h("tr", {}, ...head.map((value, column) => cell("th", value, column)))),
        h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((value, column) => cell("td", value, column)))))));
  }
  const folded = (summary, content) => h("details", {}, h("summary", {}, summary), content);

  // --- line charts, by uPlot ----------------------------------------------------------------
  // lines: [{label, colour, x: [...], y: [...]}]
  function chart(parent, caption, lines, { unit = "", xLabel = "epoch", xRange } = {}) {
    lines = lines.filter((line) => line.y.some((value) => value != null));
    if (!lines.length) return;
    const about = lines.map((line) => `${line.label}: from ${format(line.y.find((v) => v != null))} to ${format(last(line.y.filter((v) => v != null)))}`).join("; ");
    function format(value) { return (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)) + unit; }
    const spot = h("div", { role: "img", "aria-label": `${caption}. ${about}` });
    const legend = h("ul", { class: "legend" }, ...lines.map((line) => {
      const stroke = h("i", { style: `border-color:var(${line.colour});border-top-style:${line.dash ? (line.dash[0] > 3 ? "dashed" : "dotted") : "solid"}` });
      return h("li", {}, stroke, line.label);
    }));
    parent.append(h("figure", {}, h("figcaption", {}, caption), legend, spot));
    const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const data = [xs, ...lines.map((line) => {
      const at = new Map(line.x.map((x, i) => [x, line.y[i]]));
      return xs.map((x) => at.has(x) ? at.get(x) : undefined);
    })];
    let plot = null;
    function draw() {
      if (plot) plot.destroy();
      const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
      plot = new uPlot({
        width: Math.max(spot.clientWidth, 240), height: 240,
        scales: { x: { time: false, ...(xRange ? { range: xRange } : {}) }, y: unit === " %" ? { range: percents } : {} },
        cursor: { drag: { x: true, y: false } },
        axes: [{ ...axis, label: xLabel, labelSize: 18, size: 34, ...(xLabel === "epoch" ? { incrs: WHOLE } : {}) }, { ...axis, size: 56, values: (_, values) => values.map((v) => v == null ? "" : (Math.abs(v) >= 1e5 ? v.toExponential(1).replace("+", "") : v) + unit) }],
        series: [{}, ...lines.map((line) => ({
          label: line.label, stroke: colour(line.colour), width: 2, spanGaps: true,
          dash: line.dash, points: { show: line.x.length < 3, size: 6 },
        }))],
      }, data, spot);
    }
    redraw.push(draw);
    new ResizeObserver(() => plot && plot.setSize({ width: Math.max(spot.clientWidth, 240), height: 240 })).observe(spot);
  }
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
  function percents(_, low, high) {  // a little room, and nothing below 0 or above 100 %
    const room = Math.max((high - low) / 10, Math.min(high / 10, .5)) || .5;
    return [Math.max(low - room, 0), Math.min(high + room, 100)];
  }
  const counts = (_, low, high) => [.9 * low, 1.1 * high];
  const column = (epochs, key, scale = 1) => epochs.map((epoch) => epoch[key] == null ? null : scale * epoch[key]);

  function training(part, shown) {
    const whole = (run) => last(run.epochs).run_macs_dense / run.epochs.length;  // of an epoch of the dense network
    const byMacs = shown.every((run) => run.epochs.every((epoch) => epoch.run_macs != null));
    const alike = byMacs && new Set(shown.map(whole)).size === 1;
    const [size, unit] = alike ? [whole(shown[0]), ""] : byMacs ? unitOf(Math.max(...shown.map((run) => last(run.epochs).run_macs))) : [1, ""];
    const spent = (run, epochs, dense) => epochs.map((epoch) => (dense ? whole(run) * epoch.epoch : epoch.run_macs) / size);
    const place = h("div");
    function lines(key, by, scale, shown) {
      return shown.flatMap((run) => {
        const own = { ...lineOf(run), y: column(run.epochs, key, scale), x: by === "macs" ? spent(run, run.epochs) : column(run.epochs, "epoch") };
        const dense = { label: shown.length > 1 ? run.title + ", dense" : "dense", colour: "--dense", dash: [6, 4], y: column(run.dense_epochs, key, scale), x: by === "macs" ? spent(run, run.dense_epochs, true) : column(run.dense_epochs, "epoch") };
        return run.dense_epochs.length ? [own, dense] : [own];
      });
    }
    function show(by) {
      place.replaceChildren();
      const before = redraw.length;
      const xLabel = by === "epoch" ? "epoch" : alike ? "macs spent, in dense epochs" : `${unit} macs spent, forward`;
      const grid = h("div", { class: "two" });
      place.append(grid);
      const metrics = shown.map((run) => last(run.epochs).metric);
      for (const own of new Set(metrics)) {
        const rated = shown.filter((_, i) => metrics[i] === own);
        if (own) chart(grid, `${own} on the validation split`, lines("val_metric", by, 1, rated), { xLabel });
        else chart(grid, "Accuracy on the validation split", lines("val_accuracy", by, 100, rated), { unit: " %", xLabel });
      }
      chart(grid, "Training loss", lines("train_loss", by, 1, shown), { xLabel });
      if (!grid.children.length) grid.append(h("p", {}, "No epoch has a finite accuracy or loss."));
      return redraw.slice(before);
    }
    if (byMacs) {
      const buttons = [["epoch", "by epoch"], ["macs", "by macs spent"]].map(([by, label]) => {
        const button = h("button", { type: "button", "aria-pressed": by === "epoch" }, label);
        button.addEventListener("click", () => {
          for (const other of buttons) other.setAttribute("aria-pressed", other === button);
          show(by).forEach((draw) => draw());
        });
        return button;
      });
      part.append(h("div", { class: "buttons", role: "group", "aria-label": "Horizontal axis" }, ...buttons));
    }
    part.append(place);
    show("epoch");
  }

  // --- bars ---------------------------------------------------------------------------------
  function bars(rows) {  // [name, whole, kept, text]
    const most = Math.max(...rows.map((row) => row[1]), 1);
    const grid = h("div", { class: "bars" });
    for (const [name, whole, kept, text] of rows) {
      grid.append(h("span", { class: "name", title: name, ns: "html" }, `\u200e${name}\u200e`),
        h("div", { class: "bar", style: `width:${100 * whole / most}%`, role: "img", "aria-label": `${name}: ${text}` }, h("i", { style: `width:${100 * kept / Math.max(whole, 1)}%` })),
        h("span", { class: "value", "aria-hidden": "true" }, text));
    }
    return grid;
  }
  function long(rows, draw, what) {
    if (rows.length <= 40) return draw(rows);
    return h("div", {}, draw(rows.slice(0, 40)), folded(`${rows.length - 40} more ${what}`, draw(rows.slice(40))));
  }

  function heat(run) {
    const epochs = run.epochs.filter((epoch) => epoch.widths);
    if (!epochs.length || !run.groups.length) return null;
    const step = Math.max(1, Math.ceil(epochs.length / 160));
    const shown = epochs.filter((_, i) => i % step === 0 || i === epochs.length - 1);
    const narrow = matchMedia("(max-width: 32rem)").matches;
    const [w, hgt, left] = [narrow ? 160 / shown.length : Math.max(4, Math.min(24, 800 / shown.length)), 13, narrow ? 116 : 150];
    const picture = h("svg", { class: "heat", role: "img", "aria-label": "Share of each group's channels that executed, epoch by epoch: the tables below have the figures", viewBox: `0 0 ${Math.max(left + w * shown.length + 60, 264)} ${hgt * run.groups.length + 22}`, style: `max-width:${1.3 * Math.max(left + w * shown.length + 60, 264)}px;min-width:min(100%, 22rem)` });
    const draw = () => {
      picture.replaceChildren();
      run.groups.forEach((group, y) => {
        const letters = narrow ? 17 : 22;
        const name = group.name.length > letters ? group.name.slice(0, letters - 12) + "…" + group.name.slice(-11) : group.name;
        const text = h("text", { x: left - 6, y: y * hgt + 10, "text-anchor": "end" }, name);
        picture.append(text);
        fit(text, left - 8);
        picture.append(h("text", { x: left + w * shown.length + 5, y: y * hgt + 10 }, `${last(shown).widths[y]}/${group.size}`));
        for (let from = 0, to; from < shown.length; from = to) {  // a rectangle for each stretch of one width
          const width = shown[from].widths[y];
          for (to = from + 1; to < shown.length && shown[to].widths[y] === width;) to++;
          const [first, end] = [shown[from].epoch, shown[to - 1].epoch];
          picture.append(h("rect", { x: left + from * w, y: y * hgt, width: (to - from) * w + .3, height: hgt - 1, fill: colour("--gated"), "fill-opacity": (0.06 + 0.94 * width / group.size).toFixed(2) },
            h("title", {}, `${group.name}, ${first === end ? `epoch ${first}` : `epochs ${first} to ${end}`}: ${width} of ${group.size} channels`)));
        }
      });
      const [first, end, y] = [shown[0].epoch, last(shown).epoch, hgt * run.groups.length + 14];
      const apart = w * shown.length > 80;  // else the two numbers would meet
      picture.append(h("text", { x: left, y }, first === end || apart ? `epoch ${first}` : `epochs ${first} to ${end}`));
      if (first !== end && apart) picture.append(h("text", { x: left + w * shown.length, y, "text-anchor": "end" }, `${end}`));
    };
    redraw.push(draw);
    return h("figure", {}, h("figcaption", {}, "Widths over time: the stronger the colour, the more of a group's channels executed at the end of the epoch; at the right, of the last."), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Widths over time" }, picture));
  }

  // --- the channel graph --------------------------------------------------------------------
  function graph(part, run) {
    const rows = run.layers.filter((layer) => layer.width[0]);
    if (!rows.length || !run.groups.length) return;
    const at = new Map(rows.map((row, i) => [row.name, i]));
    const narrow = matchMedia("(max-width: 32rem)").matches;
    const [gap, bar, letters, most] = narrow ? [18, 80, 17, 110] : [18, 160, 40, 190];
    const left = 20 + 5.5 * Math.min(Math.max(...rows.map((row) => row.name.length), 8), letters);
    const right = left + bar + 55;  // where the arcs begin
    const bend = (y, z) => 30 + Math.min(Math.abs(z - y) * .6, most);
    const box = [0, 0, right + 20, rows.length * gap + 14];
    const picture = h("svg", { class: "graph", tabindex: "0", role: "application", "aria-label": "Channel graph. Arrow keys move it, plus and minus zoom, 0 resets. The table below has the same content." });
    const say = h("p", { class: "soft", "aria-live": "polite" }, "Point at a layer or an arc: what lights up lives and dies together.");
    const marks = run.groups.map(() => []);
    const nodes = rows.map((row, i) => {
      const [whole, kept] = row.width;
      const size = bar * whole / Math.max(...rows.map((r) => r.width[0]));
      const node = h("g", { transform: `translate(${left} ${i * gap + 10})` },
        h("text", { x: -8, y: 9, "text-anchor": "end" }, row.name.length > letters ? "…" + row.name.slice(1 - letters) : row.name),
        h("rect", { class: "whole", width: size, height: 11, rx: 2 }), h("rect", { class: "kept", width: size * kept / whole, height: 11, rx: 2 }),
        h("text", { x: size + 5, y: 9 }, `${kept}/${whole}`), h("title", {}, `${row.name}: ${kept} of ${whole} output channels`));
      picture.append(node);
      return node;
    });
    run.groups.forEach((group, g) => {
      const makes = group.makes.filter((name) => at.has(name)), uses = group.consumes.filter((name) => at.has(name));
      for (const name of makes) marks[g].push(nodes[at.get(name)]);
      const from = (makes.length ? makes : uses.slice(0, 1)).map((name) => at.get(name)).sort((a, b) => a - b);
      const to = uses.map((name) => at.get(name)).sort((a, b) => a - b);
      const pairs = new Map();  // each layer and its neighbour: all with all is a thicket
      for (const b of to) { const a = from.findLast((a) => a < b) ?? from[0]; pairs.set(`${a} ${b}`, [a, b]); }
      for (const a of from) { const b = to.find((b) => b > a) ?? last(to); if (b != null) pairs.set(`${a} ${b}`, [a, b]); }
      for (const [a, b] of pairs.values()) {
        const [y, z] = [a * gap + 16, b * gap + 16];
        if (y === z) continue;
        const tip = right + bend(y, z);
        box[2] = Math.max(box[2], right + .75 * bend(y, z) + 20);  // as far as the curve goes
        const arc = h("path", { d: `M${right} ${y} C${tip} ${y} ${tip} ${z} ${right} ${z}` }, h("title", {}, `group ${group.name}`));
        picture.append(arc);
        marks[g].push(arc);
      }
    });
    redraw.push(() => nodes.forEach((node) => fit(node.firstChild, left - 10)));
    const light = (g) => {
      marks.forEach((own, i) => own.forEach((mark) => mark.classList.toggle("on", i === g || (mark.classList.contains("on") && i < g && marks[g]?.includes(mark)))));
      const group = run.groups[g];
      if (group) say.textContent = `${group.name}: ${group.width} of ${group.size} channels kept. Made by ${group.makes.join(", ") || "no layer"}; consumed by ${group.consumes.join(", ") || "no layer"}.`;
    };
    marks.forEach((own, g) => own.forEach((mark) => mark.addEventListener("pointerenter", () => light(g))));
    const start = [0, 0, box[2], Math.min(box[3], narrow ? 480 : 320)];
    picture.style.maxWidth = `${Math.round(1.3 * start[2])}px`;  // the size of its letters, however small the network
    let view;
    const look = () => {
      for (const axis of [0, 1]) view[axis] = Math.min(Math.max(view[axis], -view[axis + 2] / 2), box[axis + 2] - view[axis + 2] / 2);  // some of it stays in sight
      picture.setAttribute("viewBox", view.join(" "));
    };
    const zoom = (factor, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) => {
      const w = Math.min(Math.max(view[2] * factor, 120), 4 * box[2]);
      const f = w / view[2];
      view = [x - (x - view[0]) * f, y - (y - view[1]) * f, w, view[3] * f];
      look();
    };
    const move = (x, y) => { view[0] += x; view[1] += y; look(); };
    const reset = () => { view = [...start]; look(); };
    reset();
    picture.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) {
        event.preventDefault();
        const place = picture.getBoundingClientRect();
        zoom(event.deltaY > 0 ? 1.15 : .87, view[0] + view[2] * (event.clientX - place.left) / place.width, view[1] + view[3] * (event.clientY - place.top) / place.height);
        return;
      }
      const to = Math.min(Math.max(view[1] + event.deltaY * view[3] / picture.clientHeight, 0), Math.max(box[3] - view[3], 0));
      if (to === view[1]) return;  // at its end the page scrolls on
      event.preventDefault();
      move(0, to - view[1]);
    }, { passive: false });
    let held = null;
    picture.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; picture.setPointerCapture(event.pointerId); });
    picture.addEventListener("pointermove", (event) => {
      if (!held) return;
      const scale = view[2] / picture.clientWidth;
      move((held[0] - event.clientX) * scale, (held[1] - event.clientY) * scale);
      held = [event.clientX, event.clientY];
    });
    picture.addEventListener("lostpointercapture", () => { held = null; });  // let go, or the page scrolls by it
    picture.addEventListener("keydown", (event) => {
      const keys = { ArrowUp: () => move(0, -40), ArrowDown: () => move(0, 40), ArrowLeft: () => move(-40, 0), ArrowRight: () => move(40, 0), "+": () => zoom(.8), "=": () => zoom(.8), "-": () => zoom(1.25), 0: reset };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    const button = (label, act) => { const made = h("button", { type: "button" }, label); made.addEventListener("click", act); return made; };
    part.append(h("div", { class: "buttons" }, button("zoom in", () => zoom(.8)), button("zoom out", () => zoom(1.25)), button("reset", reset)), picture, say,
      folded("The groups as a table", table(["group", "kept", "of", "made by", "consumed by"], run.groups.map((g) => [g.name, g.width, g.size, g.makes.join(", "), g.consumes.join(", ")]), [0, 3, 4])));
  }

  const judged = (run) => run.epochs.find((epoch) => run.network && epoch.epoch === run.network.epoch) || last(run.epochs);
  const scored = (epoch) => epoch.metric ? `${epoch.metric} ${epoch.val_metric == null ? "not finite" : plain(epoch.val_metric, 4)}` : percent(epoch.val_accuracy);

  // --- one run ------------------------------------------------------------------------------
  function tiles(run) {
    const made = [];
    const whole = (text) => text.replace(/(\d) (?=\S{1,2}(\W|$))/g, "$1\u00a0");  // a number stays with its unit
    const tile = (value, what) => made.push(h("div", { class: "tile" }, h("b", {}, whole(value)), h("span", {}, whole(what))));
    const end = last(run.epochs), at = judged(run), dense = last(run.dense_epochs), file = run.export && run.export.onnx;
    const { best, average } = run.network || {};
    const when = at && `validation, ${best ? `of epoch ${at.epoch}, the best with the final channels` : `after epoch ${at.epoch}`}${average ? ", of an average of weights" : ""}`;
    if (at && at.metric) tile(figure(at.val_metric, 4), `${at.metric}, ${when}` + (at.val_metric == null ? ": not finite" : ""));
    else if (at && at.val_accuracy != null) tile(percent(at.val_accuracy), `accuracy, ${when}` + (dense ? `; dense ${percent(dense.val_accuracy)}` : ""));
    tile(percent(run.macs.compact / run.macs.dense, 0), `of the macs: ${short(run.macs.compact)} of ${short(run.macs.dense)}`);
    tile(percent(run.params.compact / run.params.dense, 0), `of the parameters: ${short(run.params.compact)} of ${short(run.params.dense)}`);
    const times = timed(run);
    if (times) tile(percent(times.share, 0), `of the time${times.by || " in ONNX Runtime"}, median of pairs: ${ms(times.compact)} against ${ms(times.dense)}` + (run.latency ? `; asked for ${percent(run.latency.asked, 0)}` : ""));
    if (end && end.run_macs && end.run_macs_dense) tile(percent(end.run_macs / end.run_macs_dense, 0), "of the dense training's macs");
    if (file) tile(small(file.max_rel_error), `largest difference of the ONNX file; ${small(file.tolerance)} is allowed`);
    return h("div", { class: "tiles" }, ...made);
  }

  function stopped(run) {
    if (!run.network || !run.network.stopped) return [];
    const text = `The training was stopped within epoch ${run.epochs.length + 1}: widths and costs are of the network as it stands there, and nothing says how accurate it is.`;
    return [h("p", { class: "remark" }, text)];
  }

  function report(run) {
    main.append(tiles(run), ...stopped(run));
    if (run.epochs.length) {
      const part = section("training", "Training");
      training(part, [run]);
      part.append(folded("All epochs as a table", table(["epoch", "learning rate", "loss", last(run.epochs).metric || "accuracy", "macs of a step", "churn", "step"], run.epochs.map((e) => [e.epoch, figure(e.lr, 3), figure(e.train_loss, 4), scored(e), short(e.macs), e.churn == null ? "–" : percent(e.churn, 2), ms(e.step_seconds)]))));
    }
    const layers = run.layers.filter((layer) => layer.width[0]);
    if (layers.length) {
      const part = section("widths", "Widths", "Output channels of each layer, in the order in which they run: what is kept, against the whole.");
      part.append(long(layers.map((l) => [l.name, l.width[0], l.width[1], `${l.width[1]} of ${l.width[0]}`]), bars, "layers"));
      const picture = heat(run);
      if (picture) part.append(picture);
    }
    const costly = run.layers.filter((layer) => layer.macs[0]);
    if (costly.length) {
      const part = section("cost", "Where the work went", "Multiply-accumulates of one example, layer by layer: compact, against dense.");
      part.append(long(costly.map((l) => [l.name, l.macs[0], l.macs[1], `${short(l.macs[1])} of ${short(l.macs[0])}`]), bars, "layers"),
        folded("macs and parameters as a table", table(["layer", "macs, dense", "compact", "share", "parameters, dense", "compact"], costly.map((l) => [l.name, short(l.macs[0]), short(l.macs[1]), percent(l.macs[1] / l.macs[0], 0), short(l.params[0]), short(l.params[1])]))));
    }
    if (run.groups.length) {
      const part = section("choice", "How channels were chosen", `Policy ${run.policy}, budget ${run.budget}.`);
      const churn = column(run.epochs, "churn", 100);
      if (churn.some((value) => value != null) && !churn.some((value) => value)) part.append(h("p", {}, "No step exchanged a channel: the policy keeps the channels it has, and moves only the widths."));
      else chart(part, "Churn: share of the executing channels that a step exchanged, mean of the epoch", [{ label: "churn", colour: "--gated", x: column(run.epochs, "epoch"), y: churn }], { unit: " %" });
      const range = (q) => q ? `${q[2]} (${q[0]} – ${q[4]})` : "–";
      part.append(folded("Scores of kept and removed channels, median (least – greatest)", table(["group", "kept", "of", "scores of the kept", "of the removed"], run.groups.map((g) => [g.name, g.width, g.size, range(g.saliency.kept), range(g.saliency.removed)]))));
    }
    const pins = section("pinned", "What could not be removed");
    if (run.pinned.length) {
      const rows = [...run.pinned].sort((a, b) => b.share - a.share);
      pins.append(table(["reason", "channels", "of the macs", "at", "layers"], rows.map((p) => [p.reason, p.channels, percent(p.share), p.where || "–", p.layers.slice(0, 4).join(", ") + (p.layers.length > 4 ? ` and ${p.layers.length - 4} more` : "")]), [0, 3, 4]));
    } else pins.append(h("p", {}, "Nothing: every channel of every layer may be removed."));
    if (run.mixing.length) pins.append(h("h3", {}, "A removed channel changes the statistics of the others at"), h("ul", {}, ...run.mixing.map((line) => h("li", {}, h("code", {}, line)))));
    if (run.groups.length) graph(section("graph", "The channel graph", "Each row is a layer; an arc leads a group of channels from a layer to the next that consumes them."), run);
    proof(run);
  }

  function latencies(file) {
    const timing = file.timing;
    if (!timing) return [["ONNX Runtime, one example", ms(file.dense && file.dense.latency), ms(file.compact.latency)]];
    const by = timing.command ? `by ${timing.command}` : `ONNX Runtime, ${counted(timing.threads, "thread")}`;
    return (timing.command ? ["hot"] : ["hot", "cold"]).map((kind) =>
      [`one example, ${by}, ${kind}`, ms(timing[kind].dense), `${ms(timing[kind].compact)}, ${percent(timing[kind].median)}`]);
  }

  function proof(run) {
    const part = section("proof", "The proof");
    const file = run.export && run.export.onnx;
    if (!file) part.append(h("p", {}, "No file was exported yet: ", h("code", {}, "fxprune export --onnx"), " writes it, checks it, and adds its figures here."));
    else {
      part.append(h("p", {}, `${file.path}, ${short(file.bytes)}B, was compared with ${file.reference}, at batch sizes ${file.batches.join(", ")}, on fresh random inputs (seed ${file.seed})` + (file.real_examples ? ` and ${file.real_examples} examples of the data.` : ".")),
        table(["", "dense", "compact"], [
          ["parameters", short(file.dense && file.dense.params), short(file.compact.params)],
          ["macs", short(file.dense && file.dense.macs), short(file.compact.macs)],
          ["file, bytes", short(file.dense && file.dense.bytes), short(file.compact.bytes)],
          ...latencies(file),
          ["largest difference, absolute", "", small(file.max_abs_error)],
          ["largest difference, relative", "", `${small(file.max_rel_error)} (at most ${small(file.tolerance)})`],
        ]));
      if (file.sha256) part.append(h("p", { class: "soft" }, "SHA-256 ", h("code", {}, file.sha256)));
    }
    if (run.commands.length) part.append(h("h3", {}, "To repeat it"), h("pre", { tabindex: "0" }, run.commands.join("\n")));
    part.append(h("p", { class: "soft" }, Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(" · ")));
  }

  // --- several runs -------------------------------------------------------------------------
  function compare() {
    const part = section("compare", "Side by side");
    const line = (run) => {
      const end = last(run.epochs);
      const of = ({ compact, dense }) => `${short(compact)}, ${percent(compact / dense)}`;
      return [run.title, run.policy, run.budget, end ? scored(judged(run)) : "–", of(run.macs), of(run.params), percent(timed(run) && timed(run).share), end && end.run_macs ? percent(end.run_macs / end.run_macs_dense) : "–"];
    };
    part.append(table(["run", "policy", "budget", "accuracy", "macs", "parameters", "latency", "macs of the training"], runs.map(line), [0, 1, 2]));
    const points = runs.filter((run) => run.epochs.length);
    const rated = points.filter((run) => judged(run).val_accuracy != null);  // null: own losses without classes
    const alike = new Set(runs.map((run) => run.macs.dense)).size === 1;  // a share of different networks compares nothing
    const [size, unit] = alike ? [runs[0].macs.dense / 100, "% of the dense macs"] : unitOf(Math.max(...runs.map((run) => run.macs.compact)));
    const by = alike ? { xLabel: unit, xRange: percents } : { xLabel: `${unit} macs of one example`, xRange: counts };
    chart(part, "Accuracy against cost, of what each run exports", rated.map((run) => ({ ...lineOf(run), x: [run.macs.compact / size], y: [100 * judged(run).val_accuracy] })), { unit: " %", ...by });
    if (points.length) training(section("training", "Training"), points);
    for (const run of runs) {
      const own = section("run-" + runs.indexOf(run), run.title);
      own.append(tiles(run), ...stopped(run), folded("Widths", bars(run.layers.filter((l) => l.width[0]).map((l) => [l.name, l.width[0], l.width[1], `${l.width[1]} of ${l.width[0]}`]))));
    }
  }

  const epochs = ({ epochs: done, of_epochs: all }) => all > done.length ? `${done.length} of ${counted(all, "epoch")}` : counted(done.length, "epoch");
  document.getElementById("title").textContent = runs.map((run) => run.title).join(" · ");
  document.getElementById("subtitle").textContent = runs.length > 1 ? `${runs.length} runs` : `policy ${runs[0].policy} · budget ${runs[0].budget} · ${epochs(runs[0])}, ${counted(runs[0].steps, "step")}`;
  if (runs.length > 1) compare(); else report(runs[0]);
  document.getElementById("nav").append(h("ul", {}, ...[...main.querySelectorAll("section")].map((part) => h("li", {}, h("a", { href: "#" + part.id }, part.querySelector("h2").textContent)))));
  document.getElementById("footer").append(h("p", { class: "soft" }, `Written by fxprune ${runs[0].versions.fxprune}. This page holds all its figures and asks for nothing else.`));
  const all = () => redraw.forEach((draw) => draw());
  all();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  document.documentElement.dataset.drawn = "yes";
})();
