"use strict";
// Unpacks plotly and draws the network, when the reader comes near it.
(() => {
  const place = document.getElementById("network3d");
  const note = place.firstElementChild;
  if (!("DecompressionStream" in window)) { note.textContent = "This browser is too old for the 3D view."; return; }
  const ink = () => getComputedStyle(document.body).color;
  const unpack = async id => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  // An orthographic camera doesn't come nearer: the scene itself is scaled to what the page has room for.
  const scaled = ratio => {
    const fit = Math.min(1, place.clientWidth / place.clientHeight / 2.55);
    return {x: ratio.x * fit, y: ratio.y * fit, z: ratio.z * fit};
  };
  const draw = async () => {
    note.textContent = "Drawing …";
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    const {data, layout} = JSON.parse(await unpack("network3d-figure"));
    const ratio = layout.scene.aspectratio, narrow = place.clientWidth < 600;
    layout.scene.aspectratio = scaled(ratio);
    layout.font = {...layout.font, color: ink()};
    for (const label of layout.scene.annotations) label.font = {size: narrow ? 8 : 11, color: ink()};
    delete layout.height;
    layout.autosize = true;
    note.remove();
    place.style.display = "block";
    await Plotly.newPlot(place, data, layout, {
      responsive: true, scrollZoom: false, displaylogo: false, modeBarButtons: [["resetCameraDefault3d", "toImage"]],
    });
    addEventListener("resize", () => Plotly.relayout(place, {"scene.aspectratio": scaled(ratio)}));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      const annotations = layout.scene.annotations.map(label => ({...label, font: {...label.font, color: ink()}}));
      Plotly.relayout(place, {"scene.annotations": annotations});
    });
  };
  const seen = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    seen.disconnect();
    draw().catch(error => { place.textContent = "The 3D view could not be drawn: " + error.message; });
  }, {rootMargin: "400px"});
  seen.observe(place);
})();
