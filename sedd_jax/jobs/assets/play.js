{
  const { frames, ...setting } = JSON.parse(document.getElementById("data").textContent);
  const player = new Player(document.getElementById("stage"), setting);
  for (const frame of frames) player.add(frame);
  player.show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
}
