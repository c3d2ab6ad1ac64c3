/** Gives sounds and pictures to what is shown of a card. */
function fill(card) {
  for (const element of card.querySelectorAll("[data-blob]:not([src])")) {
    element.src = `data:${element.dataset.kind};base64,${blobs[element.dataset.blob]}`;
  }
}

for (const box of document.querySelectorAll(".features")) {
  const cards = [...box.querySelectorAll(".card")];
  const [search, order] = box.querySelectorAll(".search input, .search select");
  const words = cards.map((card) => card.dataset.words.toLowerCase().split(/\s+/));
  const scores = cards.map((card) => JSON.parse(card.dataset.scores));

  search.addEventListener("input", () => {
    const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    // a number is that of a feature, or a class as a whole; other words may go on
    const found = (all, word) => all.some((w) => w === word || (!/^\d+$/.test(word) && w.startsWith(word)));
    cards.forEach((card, i) => (card.hidden = !asked.every((word) => found(words[i], word))));
    const shown = cards.filter((card) => !card.hidden).length;
    set(box.querySelector("output"), asked.length ? `${shown} of ${cards.length} features` : `${shown} features`);
  });
  order.addEventListener("change", () => {
    const by = (i) => (order.value ? -(scores[i][order.value - 1] ?? -Infinity) : i);
    const places = cards.map((_, i) => i).sort((a, b) => by(a) - by(b) || a - b);
    box.querySelector(".cards").append(...places.map((i) => cards[i]));
  });
  for (const slider of box.querySelectorAll(".steer input")) {
    const clips = [...slider.closest(".card").querySelectorAll(".steered .clip")].slice(1);
    const choose = () => {
      const [now, before] = [clips[slider.value - 1], clips.find((clip) => !clip.hidden)];
      const [sound, last] = [now, before].map((clip) => clip.querySelector("audio"));
      const label = now.querySelector("figcaption").textContent;
      set(slider.previousElementSibling, label);
      slider.setAttribute("aria-valuetext", label);
      clips.forEach((clip) => (clip.hidden = clip !== now));
      if (last.paused || sound === last) return;
      sound.currentTime = last.currentTime;
      sound.play();
    };
    slider.addEventListener("input", choose);
    choose();
  }
  for (const card of cards) {
    card.addEventListener("toggle", () => fill(card));
    if (card.open) fill(card);
  }
  box.addEventListener("play", ({ target }) => {
    for (const other of box.querySelectorAll("audio")) if (other !== target) other.pause();
    follow(target, target.closest(".clip").querySelector(".head"));
  }, true);
}

/** Opens the card that the address names. */
function openCard() {
  const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (card?.matches(".card")) {
    card.open = true;
    card.scrollIntoView();
  }
}
addEventListener("hashchange", openCard);
openCard();
